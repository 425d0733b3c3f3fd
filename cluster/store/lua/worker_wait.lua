-- A poll: take what waits for this worker, or let the worker wait.
-- KEYS  1 profiles  2 seen  3 polls  4 waiting  5 board  6 offers  7 given  8 paused  9 held
-- ARGV  1 worker  2 poll id  3 replica  4 ms it will wait  5 TTL of the worker in ms  6 ms in which what is given must be claimed
--       7 how many offers to look at, of each type,  then offer ids that this worker cannot serve
-- reply {unknown} | {busy} | {taken, offer id} | {look, offer id, need, …} best first, the caller chooses | {waiting}
-- A worker has one waiting poll: a newer one replaces the older, which is told nothing and ends by itself.
local worker = ARGV[1]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local raw = redis.call('HGET', KEYS[1], worker)
if not raw or tonumber(redis.call('ZSCORE', KEYS[2], worker) or '0') <= now then
  return { 'unknown' }
end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[5]), worker)
local before = redis.call('HGET', KEYS[3], worker)
if before then
  for _, member in ipairs(cjson.decode(before)['members']) do
    redis.call('ZREM', KEYS[4], member)
  end
  redis.call('HDEL', KEYS[3], worker)
end
local profile = cjson.decode(raw)
redis.call('ZREMRANGEBYSCORE', KEYS[9], '-inf', now)
local running = redis.call('ZCARD', KEYS[9])
if profile['is_busy'] or running >= (profile['max_running'] or 1)
  or redis.call('SISMEMBER', KEYS[8], 'worker:' .. worker) == 1
  or redis.call('SISMEMBER', KEYS[8], 'drain:' .. worker) == 1 then
  return { 'busy' }
end
local rejected = {}
for n = 8, #ARGV do
  rejected[ARGV[n]] = true
end
local found, types = {}, {}
for _, kind in ipairs(profile['capabilities']) do
  if redis.call('SISMEMBER', KEYS[8], 'type:' .. kind) == 0 then
    types[#types + 1] = kind
    local most = tonumber(ARGV[7]) + #ARGV - 7
    for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[5], '[' .. kind .. '\0', '(' .. kind .. '\1', 'LIMIT', 0, most)) do
      local order, id = string.match(string.sub(member, #kind + 2), '^([^%z]+)%z(.+)$')
      if id and not rejected[id] then
        found[#found + 1] = { order, id, member }
      end
    end
  end
end
table.sort(found, function(one, other) return one[1] < other[1] or (one[1] == other[1] and one[2] < other[2]) end)
if #found > 0 then
  local reply = { 'look' }
  for position, each in ipairs(found) do
    local entry = redis.call('HGET', KEYS[6], each[2])
    if not entry then
      redis.call('ZREM', KEYS[5], each[3])
    else
      local need = cjson.decode(entry)['need'] or ''
      if need == '' and #reply == 1 then
        redis.call('ZREM', KEYS[5], each[3])
        redis.call('ZADD', KEYS[7], now + tonumber(ARGV[6]), each[2])
        redis.call('ZADD', KEYS[9], now + tonumber(ARGV[6]), each[2])
        redis.call('PEXPIRE', KEYS[9], 3600000)
        return { 'taken', each[2] }
      end
      reply[#reply + 1] = each[2]
      reply[#reply + 1] = need
    end
    if position >= 200 then
      break
    end
  end
  if #reply > 1 then
    return reply
  end
end
local members = {}
for n, kind in ipairs(types) do
  members[n] = kind .. '\0' .. string.format('%015d', now) .. '\0' .. worker
  redis.call('ZADD', KEYS[4], 0, members[n])
end
redis.call('HSET', KEYS[3], worker, cjson.encode({ poll = ARGV[2], replica = ARGV[3], until_ms = now + tonumber(ARGV[4]),
  running = running, since_ms = now, members = members }))
return { 'waiting' }
