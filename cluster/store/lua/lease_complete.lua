-- Take a result: the lease ends, and its owner is told, together, or nothing happens.
-- KEYS  1 offer  2 inbox  3 leases  4 run
-- ARGV  1 offer id  2 worker  3 token or '' where the worker does not echo it  4 result (JSON)  5 TTL in ms of what is over
--       6 run_id, whose key the fourth is
-- reply accepted | repeated (accepted before) | late (it had the lease, and has it no more) | foreign (another worker's) | unknown
--       | misnamed (it is another Run's)
local o = redis.call('HMGET', KEYS[1], 'state', 'worker', 'token', 'run', 'attempt', 'step', 'item', 'former')
if not o[1] then
  return 'unknown'
end
if o[4] ~= ARGV[6] then
  return 'misnamed'
end
if o[2] ~= ARGV[2] then
  if o[8] and string.find(' ' .. o[8] .. ' ', ' ' .. ARGV[2] .. ' ', 1, true) then
    return 'late'
  end
  return 'foreign'
end
if ARGV[3] ~= '' and o[3] ~= ARGV[3] then
  return 'late'
end
if o[1] ~= 'leased' then
  return o[1] == 'done' and 'repeated' or 'late'
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or '0') <= now then
  return 'late'
end
local record = redis.call('HGET', KEYS[4], 'record')
local status = record and cjson.decode(record)['status'] or 'cancelled'
if status == 'succeeded' or status == 'failed' or status == 'cancelled' then
  return 'late'
end
redis.call('HSET', KEYS[1], 'state', 'done', 'body', '')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('XADD', KEYS[2], '*', 'k', 'result', 'r', o[4], 'o', ARGV[1], 's', o[6], 'i', o[7], 'a', o[5], 'd', ARGV[4])
return 'accepted'
