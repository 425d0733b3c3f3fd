-- Put back what was given and not claimed in time, forget workers that gave no sign of life, and tell what is on the board.
-- KEYS  1 offers  2 board  3 given  4 waiting  5 polls  6 profiles  7 documents  8 seen
-- ARGV  1 most of each
-- reply offer id, its entry (JSON), …: the first on the board of each type that a worker waits for
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZREM', KEYS[3], id)
  local raw = redis.call('HGET', KEYS[1], id)
  if raw then
    local known = cjson.decode(raw)
    redis.call('ZADD', KEYS[2], 0, known['type'] .. '\0' .. known['order'] .. '\0' .. id)
  end
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local raw = redis.call('HGET', KEYS[5], worker)
  if raw then
    for _, member in ipairs(cjson.decode(raw)['members']) do
      redis.call('ZREM', KEYS[4], member)
    end
  end
  redis.call('HDEL', KEYS[5], worker)
  redis.call('HDEL', KEYS[6], worker)
  redis.call('HDEL', KEYS[7], worker)
  redis.call('ZREM', KEYS[8], worker)
end
local reply, from = {}, '-'
for _ = 1, tonumber(ARGV[1]) do  -- from one type that is waited for to the next
  local first = redis.call('ZRANGEBYLEX', KEYS[4], from, '+', 'LIMIT', 0, 1)[1]
  if not first then
    break
  end
  local kind = string.match(first, '^[^%z]+')
  from = '(' .. kind .. '\1'
  for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], '[' .. kind .. '\0', from, 'LIMIT', 0, 20)) do
    local id = string.match(member, '([^%z]+)$')
    local raw = redis.call('HGET', KEYS[1], id)
    if raw then
      reply[#reply + 1] = id
      reply[#reply + 1] = raw
    else
      redis.call('ZREM', KEYS[2], member)
    end
  end
end
return reply
