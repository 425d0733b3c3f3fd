-- Write one batch of transitions of one partition: all of it under the owner's epoch, or nothing.
-- KEYS  1 owner  2 inbox  3 active  4 totals  5 tenants  6 outbox  7 webhooks  8 webhooks_due,
--       then for each creation: index; then for each Run: run, events, watchers; then for each verdict: verdict
-- ARGV  1 epoch  2 commit number (a repeated one was written before; a gap means that the store has lost some)  3 inbox id to trim to, or ''
--       4 number of creations  5 number of Runs  6 number of verdicts  7 wake channel  8 verdict channel  9 number of notices,
--       then for each creation: run_id, tenant, created_at (its Run's hash fields come with the Runs),
--       then for each Run:
--         run_id, number of hash fields, field, value, …, number of stream entries, last event's seq, events, …,
--         status if it ended now or '', and if it ended: tenant, retention ms, ended_at, webhook (JSON) or ''
--       then for each verdict: command_id, text, TTL ms
--       then for each notice (a webhook of a Run that goes on): id, webhook (JSON), when it is due
-- reply -1 stale epoch or a gap, nothing written | number of messages put into the outbox; for a repeated batch, whose first
--       reply may be lost, the number of all that wait there
-- Events of a Run may pass no number of arguments that unpack cannot hold, so long lists go in slices.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'commit', 'owner')
if held[1] ~= ARGV[1] then
  return -1
end
local last = tonumber(held[2] or '0')
if last >= tonumber(ARGV[2]) then
  return redis.call('XLEN', KEYS[6])
end
if last ~= tonumber(ARGV[2]) - 1 then
  return -1
end
-- A server at its memory limit refuses what adds, unless the script has written before: an accepted Run must
-- be able to end there, or nothing would ever be freed. What is new is refused by submit.lua and its callers.
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'commit', ARGV[2])
local a, messages, woken = 10, 0, {}
local creations, runs, verdicts = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
for n = 1, creations do
  redis.call('ZADD', KEYS[3], ARGV[a + 2], ARGV[a])
  redis.call('ZADD', KEYS[8 + n], ARGV[a + 2], ARGV[a])
  redis.call('HINCRBY', KEYS[5], ARGV[a + 1], 1)
  a = a + 3
end
if creations > 0 then
  redis.call('HINCRBY', KEYS[4], 'submitted', creations)
end
local k = 8 + creations
for n = 1, runs do
  local run, events, watchers = KEYS[k + 1], KEYS[k + 2], KEYS[k + 3]
  k = k + 3
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
  redis.call('SET', KEYS[k + n], ARGV[a + 1], 'PX', ARGV[a + 2])
  redis.call('PUBLISH', ARGV[8], ARGV[a] .. ' ' .. ARGV[a + 1])
  a = a + 3
end
for _ = 1, tonumber(ARGV[9]) do
  redis.call('HSET', KEYS[7], ARGV[a], ARGV[a + 1])
  redis.call('ZADD', KEYS[8], ARGV[a + 2], ARGV[a])
  a = a + 3
end
if ARGV[3] ~= '' then
  redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[3])
end
if #woken > 0 then
  redis.call('PUBLISH', ARGV[7], table.concat(woken, '\n'))
end
return messages
