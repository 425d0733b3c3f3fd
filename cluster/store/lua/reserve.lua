-- Announce Runs that are about to be submitted near their tenant's limit: those who look at once see each other.
-- KEYS  1 room
-- ARGV  1 token  2 number of Runs  3 milliseconds after which the announcement lapses
-- reply number of Runs that others have announced before
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local before = 0
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local token, number = string.match(member, '^(%x+):(%d+)$')
  if token ~= ARGV[1] then
    before = before + tonumber(number)
  end
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1] .. ':' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return before
