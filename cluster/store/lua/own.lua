-- Claim, renew or release a partition. A lease ends by Redis's own clock; a late owner that nobody replaced renews.
-- KEYS  1 owner
-- ARGV  1 owner id  2 lease in ms; 0 releases
-- reply {epoch, 1 if owned by the caller now, 1 if that is new, milliseconds the present lease still runs, last commit}
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local held = redis.call('HMGET', KEYS[1], 'owner', 'until_ms', 'epoch', 'commit')
local owner, until_ms, epoch = held[1], tonumber(held[2] or '0'), tonumber(held[3] or '0')
local lease = tonumber(ARGV[2])
if owner == ARGV[1] and until_ms > 0 then
  redis.call('HSET', KEYS[1], 'until_ms', lease > 0 and now + lease or 0)
  return { epoch, lease > 0 and 1 or 0, 0, lease, tonumber(held[4] or '0') }
end
if lease == 0 or (owner and now < until_ms) then
  return { epoch, 0, 0, math.max(until_ms - now, 0), 0 }
end
epoch = epoch + 1
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until_ms', now + lease, 'epoch', epoch, 'commit', 0)
return { epoch, 1, 1, lease, 0 }
