-- End a lease, or an offer, without a result.
-- KEYS  1 offer  2 inbox  3 leases
-- ARGV  1 offer id  2 how: expired (only if its time is over) | released (by its worker) | withdrawn (by the owner, who knows)
--       3 worker, for released  4 token or ''  5 reason, for people  6 TTL in ms of what is over
-- reply {0} nothing changed | {1, worker that had it or '', run_id}
-- The owner is told of what expired and was released; what was withdrawn may be offered again.
local o = redis.call('HMGET', KEYS[1], 'state', 'worker', 'token', 'run', 'attempt', 'step', 'item', 'former')
if not o[1] then
  redis.call('ZREM', KEYS[3], ARGV[1])
  return { 0 }
end
if ARGV[2] ~= 'withdrawn' then
  if o[1] ~= 'leased' then
    return { 0 }
  end
  if ARGV[2] == 'expired' then
    local time = redis.call('TIME')
    local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    if tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or '0') > now then
      return { 0 }
    end
  elseif o[2] ~= ARGV[3] or (ARGV[4] ~= '' and o[3] ~= ARGV[4]) then
    return { 0 }
  end
elseif o[1] == 'withdrawn' then
  return { 0 }
end
local had = o[1] == 'leased' and o[2] or ''
local former = o[8] or ''
if o[2] ~= '' then
  former = string.sub(former .. ' ' .. o[2], -1000)
end
redis.call('HSET', KEYS[1], 'state', ARGV[2] == 'withdrawn' and 'withdrawn' or 'lost', 'worker', '', 'token', '',
  'former', former, 'body', '')
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[2] ~= 'withdrawn' then
  redis.call('XADD', KEYS[2], '*', 'k', 'lost', 'r', o[4], 'o', ARGV[1], 's', o[6], 'i', o[7], 'a', o[5],
    'c', ARGV[2] == 'expired' and '1' or '0', 'm', ARGV[5])
end
return { 1, had, o[4] }
