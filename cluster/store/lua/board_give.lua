-- Give an offer on the board to a worker: one that waits is told on its replica's channel, one that polls just now is the caller's.
-- KEYS  1 offers  2 board  3 given  4 waiting  5 polls  6 paused  7 held
-- ARGV  1 offer id  2 worker  3 ms in which it must be claimed  4 prefix of the replicas' channels, '' where the worker polls now
-- reply given | taken (the offer is not there any more) | gone (the worker waits no more)
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw then
  return 'taken'
end
local known = cjson.decode(raw)
local member = known['type'] .. '\0' .. known['order'] .. '\0' .. ARGV[1]
if not redis.call('ZSCORE', KEYS[2], member) then
  return 'taken'
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if ARGV[4] ~= '' then
  local waiting = redis.call('HGET', KEYS[5], ARGV[2])
  if not waiting then
    return 'gone'
  end
  local poll = cjson.decode(waiting)
  for _, each in ipairs(poll['members']) do
    redis.call('ZREM', KEYS[4], each)
  end
  redis.call('HDEL', KEYS[5], ARGV[2])
  if poll['until_ms'] <= now or redis.call('SISMEMBER', KEYS[6], 'worker:' .. ARGV[2]) == 1
    or redis.call('SISMEMBER', KEYS[6], 'drain:' .. ARGV[2]) == 1 then
    return 'gone'
  end
  if redis.call('PUBLISH', ARGV[4] .. poll['replica'], poll['poll'] .. ' ' .. ARGV[1]) == 0 then
    return 'gone'
  end
end
redis.call('ZREM', KEYS[2], member)
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[3]), ARGV[1])
redis.call('ZADD', KEYS[7], now + tonumber(ARGV[3]), ARGV[1])
redis.call('PEXPIRE', KEYS[7], 3600000)
return 'given'
