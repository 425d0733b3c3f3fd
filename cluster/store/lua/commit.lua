-- Write one batch of transitions of one partition: all of it under the owner's epoch, or nothing.
-- KEYS  1 owner  2 inbox  3 active  4 totals  5 tenants  6 outbox  7 webhooks  8 webhooks_due,
--       then for each Run: run, events, watchers; then for each verdict: verdict
-- ARGV  1 epoch  2 commit number (a repeated one was written before)  3 inbox id to trim to, or ''
--       4 number of Runs  5 number of verdicts  6 wake channel  7 verdict channel, then for each Run:
--         run_id, number of hash fields, field, value, …, number of events, seq, event, …,
--         status if it ended now or '', and if it ended: tenant, retention ms, ended_at, webhook (JSON) or ''
--       then for each verdict: command_id, text, TTL ms
-- reply -1 stale epoch, nothing written | number of messages put into the outbox; for a repeated batch, whose first
--       reply may be lost, the number of all that wait there
-- Events of a Run may pass no number of arguments that unpack cannot hold, so long lists go in slices.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'commit', 'owner')
if held[1] ~= ARGV[1] then
  return -1
end
if tonumber(held[2] or '0') >= tonumber(ARGV[2]) then
  return redis.call('XLEN', KEYS[6])
end
redis.call('HSET', KEYS[1], 'commit', ARGV[2])
local a, messages, woken = 8, 0, {}
local runs, verdicts = tonumber(ARGV[4]), tonumber(ARGV[5])
for n = 1, runs do
  local run, events, watchers = KEYS[6 + n * 3], KEYS[7 + n * 3], KEYS[8 + n * 3]
  local run_id, fields = ARGV[a], tonumber(ARGV[a + 1])
  a = a + 2
  local last = a + fields * 2
  while a < last do
    local stop = math.min(a + 2000, last)
    redis.call('HSET', run, unpack(ARGV, a, stop - 1))
    a = stop
  end
  local count = tonumber(ARGV[a])
  a = a + 1
  for _ = 1, count do
    redis.call('XADD', events, ARGV[a] .. '-0', 'e', ARGV[a + 1])
    a = a + 2
  end
  if count > 0 then
    woken[#woken + 1] = run_id
  end
  local ended = ARGV[a]
  a = a + 1
  if ended ~= '' then
    local tenant, retention, ended_at, webhook = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3]
    a = a + 4
    redis.call('ZREM', KEYS[3], run_id)
    redis.call('HINCRBY', KEYS[4], ended, 1)
    if redis.call('HINCRBY', KEYS[5], tenant, -1) <= 0 then
      redis.call('HDEL', KEYS[5], tenant)
    end
    redis.call('PEXPIRE', run, retention)
    redis.call('PEXPIRE', events, retention)
    for _, watcher in ipairs(redis.call('SMEMBERS', watchers)) do
      redis.call('XADD', KEYS[6], '*', 'to', watcher, 'run', run_id, 'status', ended)
      messages = messages + 1
    end
    redis.call('DEL', watchers)
    if webhook ~= '' then
      redis.call('HSET', KEYS[7], run_id, webhook)
      redis.call('ZADD', KEYS[8], ended_at, run_id)
    end
  end
end
for n = 1, verdicts do
  redis.call('SET', KEYS[8 + runs * 3 + n], ARGV[a + 1], 'PX', ARGV[a + 2])
  redis.call('PUBLISH', ARGV[7], ARGV[a] .. ' ' .. ARGV[a + 1])
  a = a + 3
end
if ARGV[3] ~= '' then
  redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[3])
end
if #woken > 0 then
  redis.call('PUBLISH', ARGV[6], table.concat(woken, '\n'))
end
return messages
