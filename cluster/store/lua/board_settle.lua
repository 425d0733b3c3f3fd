-- Say what became of an offer.
-- KEYS  1 offers  2 board  3 given  4 held  5 cancels
-- ARGV  1 offer id  2 what: claimed | returned (given, and not claimed) | over | done (its worker is no longer at it)
--       3 lease in ms, for claimed
-- reply offer ids that the worker is to stop
if ARGV[2] == 'done' then
  redis.call('ZREM', KEYS[4], ARGV[1])
  redis.call('SREM', KEYS[5], ARGV[1])
  return {}
end
local raw = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
if ARGV[2] == 'claimed' then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('ZADD', KEYS[4], now + tonumber(ARGV[3]), ARGV[1])
  redis.call('PEXPIRE', KEYS[4], 3600000)
end
local to_stop = redis.call('SMEMBERS', KEYS[5])
if not raw then
  return to_stop
end
local known = cjson.decode(raw)
local member = known['type'] .. '\0' .. known['order'] .. '\0' .. ARGV[1]
if ARGV[2] == 'returned' then
  if redis.call('ZREM', KEYS[3], ARGV[1]) == 1 then
    redis.call('ZADD', KEYS[2], 0, member)
  end
  return to_stop
end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[2], member)
redis.call('HDEL', KEYS[1], ARGV[1])
return to_stop
