-- Ask to be told when a Run ends; the Run may not exist yet.
-- KEYS  1 run  2 watchers
-- ARGV  1 id of the Run that waits  2 TTL of the watch in ms
-- reply the status if the Run has ended, else ''
local record = redis.call('HGET', KEYS[1], 'record')
if record then
  local status = cjson.decode(record)['status']
  if status == 'succeeded' or status == 'failed' or status == 'cancelled' then
    return status
  end
end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return ''
