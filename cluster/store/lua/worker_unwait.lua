-- A poll has ended: its worker waits no more, unless by a newer one.
-- KEYS  1 polls  2 waiting
-- ARGV  1 worker  2 poll id, or '' for any
-- reply 1 it waited | 0 not
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw then
  return 0
end
local poll = cjson.decode(raw)
if ARGV[2] ~= '' and poll['poll'] ~= ARGV[2] then
  return 0
end
for _, member in ipairs(poll['members']) do
  redis.call('ZREM', KEYS[2], member)
end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
