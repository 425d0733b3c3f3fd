-- Claim, renew or release a partition. A lease ends by Redis's own clock.
-- KEYS  1 owner
-- ARGV  1 owner id  2 lease in ms; 0 releases
-- reply {epoch, 1 if owned by the caller now, 1 if that is new, milliseconds the present lease still runs}
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local held = redis.call('HMGET', KEYS[1], 'owner', 'until_ms', 'epoch')
local owner, until_ms, epoch = held[1], tonumber(held[2] or '0'), tonumber(held[3] or '0')
local lease = tonumber(ARGV[2])
if owner == ARGV[1] and now < until_ms then
  redis.call('HSET', KEYS[1], 'until_ms', now + lease)
  return { epoch, lease > 0 and 1 or 0, 0, lease }
end
if lease == 0 or (owner and now < until_ms) then
  return { epoch, 0, 0, until_ms - now }
end
epoch = epoch + 1
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until_ms', now + lease, 'epoch', epoch, 'commit', 0)
return { epoch, 1, 1, lease }
