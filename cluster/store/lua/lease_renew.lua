-- Renew a lease that has not ended, and tell its owner of progress where there is some.
-- KEYS  1 offer  2 inbox  3 leases
-- ARGV  1 offer id  2 worker  3 token or '' where the worker does not echo it  4 lease in ms
--       5 progress 0 to 1 or ''  6 message
-- reply 1 renewed | 0 not (any more) its own
local o = redis.call('HMGET', KEYS[1], 'state', 'worker', 'token', 'run', 'attempt', 'step', 'item')
if o[1] ~= 'leased' or o[2] ~= ARGV[2] or (ARGV[3] ~= '' and o[3] ~= ARGV[3]) then
  return 0
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or '0') <= now then
  return 0
end
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[4]), ARGV[1])
if ARGV[5] ~= '' then
  redis.call('XADD', KEYS[2], '*', 'k', 'progress', 'r', o[4], 'o', ARGV[1], 's', o[6], 'i', o[7], 'a', o[5],
    'p', ARGV[5], 'm', ARGV[6])
end
return 1
