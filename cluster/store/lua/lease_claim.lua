-- Take an offer: the lease begins, and its owner is told, together. A repeated call is answered as the first.
-- KEYS  1 offer  2 inbox  3 leases
-- ARGV  1 offer id  2 worker  3 token  4 lease in ms
-- reply {} where it cannot be had | {body, run_id, attempt}
local o = redis.call('HMGET', KEYS[1], 'state', 'worker', 'token', 'body', 'run', 'attempt', 'step', 'item')
if o[1] == 'leased' and o[2] == ARGV[2] and o[3] == ARGV[3] then
  return { o[4], o[5], o[6] }
end
if o[1] ~= 'offered' then
  return {}
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[1], 'state', 'leased', 'worker', ARGV[2], 'token', ARGV[3])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[4]), ARGV[1])
redis.call('XADD', KEYS[2], '*', 'k', 'claimed', 'r', o[5], 'o', ARGV[1], 's', o[7], 'i', o[8], 'a', o[6], 'w', ARGV[2])
return { o[4], o[5], o[6] }
