-- Put a client's command into the inbox, once: the same command_id again is answered with its verdict, if there is one.
-- KEYS  1 inbox  2 run  3 verdict
-- ARGV  1 run_id  2 command_id  3 command (JSON)  4 tenant or '' for any  5 milliseconds a doubled command is remembered
-- reply {unknown} | {posted} | {verdict, text}
local header = redis.call('HGET', KEYS[2], 'header')
if not header then
  return { 'unknown' }
end
if ARGV[4] ~= '' and cjson.decode(header)['tenant'] ~= ARGV[4] then
  return { 'unknown' }
end
local verdict = redis.call('GET', KEYS[3])
if verdict and verdict ~= 'posted' then
  return { 'verdict', verdict }
end
if not verdict then
  redis.call('SET', KEYS[3], 'posted', 'PX', ARGV[5])
  redis.call('XADD', KEYS[1], '*', 'k', 'command', 'r', ARGV[1], 'c', ARGV[2], 'd', ARGV[3])
end
return { 'posted' }
