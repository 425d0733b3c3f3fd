-- Put an offer on the board, unless it is there or given, and tell which waiting workers serve its type.
-- KEYS  1 offers  2 board  3 given  4 waiting  5 profiles  6 polls  7 paused
-- ARGV  1 offer id  2 type  3 order  4 need (JSON), '' for none  5 most workers to tell of  6 '1': only if it is there already
-- reply {} | {worker, profile, number it runs, …}, who has waited longest first
local id, kind = ARGV[1], ARGV[2]
local member = kind .. '\0' .. ARGV[3] .. '\0' .. id
local raw = redis.call('HGET', KEYS[1], id)
if ARGV[6] == '1' then
  if not raw then
    return {}
  end
elseif raw then
  local known = cjson.decode(raw)
  if known['order'] ~= ARGV[3] then
    local old = known['type'] .. '\0' .. known['order'] .. '\0' .. id
    if redis.call('ZREM', KEYS[2], old) == 1 then
      redis.call('ZADD', KEYS[2], 0, member)
    end
    redis.call('HSET', KEYS[1], id, cjson.encode({ type = kind, order = ARGV[3], need = ARGV[4] }))
  end
else
  redis.call('HSET', KEYS[1], id, cjson.encode({ type = kind, order = ARGV[3], need = ARGV[4] }))
  redis.call('ZADD', KEYS[2], 0, member)
end
if not redis.call('ZSCORE', KEYS[2], member) or redis.call('SISMEMBER', KEYS[7], 'type:' .. kind) == 1 then
  return {}
end
local reply = {}
for _, each in ipairs(redis.call('ZRANGEBYLEX', KEYS[4], '[' .. kind .. '\0', '(' .. kind .. '\1', 'LIMIT', 0, ARGV[5])) do
  local worker = string.match(string.sub(each, #kind + 2), '^[^%z]+%z(.+)$')
  local profile = redis.call('HGET', KEYS[5], worker)
  local poll = redis.call('HGET', KEYS[6], worker)
  if profile and poll then
    reply[#reply + 1] = worker
    reply[#reply + 1] = profile
    reply[#reply + 1] = cjson.decode(poll)['running']
  else
    redis.call('ZREM', KEYS[4], each)
  end
end
return reply
