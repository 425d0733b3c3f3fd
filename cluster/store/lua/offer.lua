-- Offer a StepRun to outside workers; the same offer again changes nothing.
-- KEYS  1 offer
-- ARGV  1 run_id  2 step  3 item  4 attempt it will be  5 body for the worker (JSON)  6 TTL in ms
--       7 '1' to offer it again although somebody had it
-- reply the state before (offered | leased | done | lost | withdrawn), '' where there was none. It is offered now where that
--       was '', offered or withdrawn, or the seventh argument says so
local state = redis.call('HGET', KEYS[1], 'state') or ''
if ARGV[7] ~= '1' and (state == 'leased' or state == 'done' or state == 'lost') then
  return state
end
redis.call('HSET', KEYS[1], 'state', 'offered', 'run', ARGV[1], 'step', ARGV[2], 'item', ARGV[3], 'attempt', ARGV[4],
  'body', ARGV[5], 'worker', '', 'token', '')
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return state
