-- Register an outside worker, or note a sign of life of one.
-- KEYS  1 profiles  2 documents  3 seen  4 paused
-- ARGV  1 worker  2 TTL in ms  3 profile (JSON) or '' for a sign of life  4 document (JSON) or ''  5 '1' where it registers: a
--       drain is over
-- reply its document, '' where it is not known (any more)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if ARGV[5] == '1' then
  redis.call('SREM', KEYS[4], 'drain:' .. ARGV[1])
elseif tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or '0') <= now then
  return ''
end
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[1])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
end
return redis.call('HGET', KEYS[2], ARGV[1]) or ''
