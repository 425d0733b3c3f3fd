-- Accept Runs of one partition: record, inbox entry and indexes together, or nothing.
-- KEYS  1 inbox  2 active  3 totals  4 tenants, then for each Run: run, events, index
-- ARGV  1 number of Runs, then for each Run 10:
--       run_id, digest, header, plan, inputs, record, first event, tenant, created_at, dialect
-- reply one word a Run: created | same (given before with this digest) | taken (given before with another)
local replies = {}
local a = 2
for n = 1, tonumber(ARGV[1]) do
  local run, events, index = KEYS[2 + n * 3], KEYS[3 + n * 3], KEYS[4 + n * 3]
  local known = redis.call('HGET', run, 'digest')
  if known then
    replies[n] = (known == ARGV[a + 1]) and 'same' or 'taken'
  else
    local run_id, tenant, created_at = ARGV[a], ARGV[a + 7], ARGV[a + 8]
    redis.call('HSET', run, 'digest', ARGV[a + 1], 'header', ARGV[a + 2], 'plan', ARGV[a + 3],
      'inputs', ARGV[a + 4], 'record', ARGV[a + 5])
    redis.call('XADD', events, '1-0', 'e', ARGV[a + 6])
    redis.call('ZADD', KEYS[2], created_at, run_id)
    redis.call('ZADD', index, created_at, run_id)
    redis.call('HINCRBY', KEYS[3], 'submitted', 1)
    redis.call('HINCRBY', KEYS[4], tenant, 1)
    redis.call('XADD', KEYS[1], '*', 'k', 'submit', 'r', run_id, 'h', ARGV[a + 2], 'p', ARGV[a + 3],
      'i', ARGV[a + 4], 's', ARGV[a + 5])
    replies[n] = 'created'
  end
  a = a + 10
end
return replies
