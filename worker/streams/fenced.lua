-- What a keeper does, if its epoch still stands, and was given to it: else an error that begins with FENCED.
-- KEYS: state, images, lease, replies, review.  ARGV: epoch and holder, a space between them; what; then by what:
--   renew   milliseconds
--   read    group, consumer, count, id ('>' or where to go on in the pending entries)
--   commit  reply or '', cap of replies, group to be moved or '', to which entry, cap of review, most bytes in review,
--           number of review fields, number of review entries to remove, review fields (8 a part, by REVIEW), ids of
--           the entries to remove, field, value, ... of the state hash; all of it at once
--   show    field, value, ...                  of the state hash: what is only to be seen
--   ack     group, entry, ...
--   trim    lowest id to keep, done_through   refused where the stream ends before what was answered or learned
--   lost    group                              see lost.lua
--   consumers  group, idle milliseconds        delete those that have been idle for longer and have nothing pending
--   release
local epoch, holder = string.match(ARGV[1], '^(%d+) ?(.*)$')
if redis.call('HGET', KEYS[1], 'epoch') ~= epoch then
  return redis.error_reply('FENCED epoch ' .. epoch .. ' is no longer the line\'s')
end
local given = redis.call('HGET', KEYS[1], 'holder')  -- none by a release before this
if given and holder ~= '' and given ~= holder then
  return redis.error_reply('FENCED epoch ' .. epoch .. ' was given to ' .. given .. ', too')
end
redis.call('HDEL', KEYS[1], '')  -- a full server lets a script go on whose first write takes no memory
local what = ARGV[2]
if what == 'renew' then
  local held_by = redis.call('GET', KEYS[3])
  if held_by and held_by ~= holder then
    return redis.error_reply('FENCED the lease is held by ' .. held_by)
  end
  return redis.call('SET', KEYS[3], holder, 'PX', ARGV[3])
elseif what == 'read' then
  return redis.call('XREADGROUP', 'GROUP', ARGV[3], ARGV[4], 'COUNT', ARGV[5], 'STREAMS', KEYS[2], ARGV[6])
elseif what == 'commit' then
  local removed = 11 + tonumber(ARGV[9])
  local state = removed + tonumber(ARGV[10])
  redis.call('XLEN', KEYS[4])  -- keys of another type fail before anything is written
  redis.call('XLEN', KEYS[5])
  if ARGV[5] ~= '' then
    redis.call('XGROUP', 'SETID', KEYS[2], ARGV[5], ARGV[6])
  end
  for i = 11, removed - 1, #REVIEW do
    keep_for_review(KEYS[5], ARGV[7], tonumber(ARGV[8]), ARGV, i)
  end
  for i = removed, state - 1 do
    redis.call('XDEL', KEYS[5], ARGV[i])
  end
  redis.call('HSET', KEYS[1], unpack(ARGV, state))
  if ARGV[3] ~= '' then
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[4], '*', 'reply', ARGV[3])
  end
  return 1
elseif what == 'show' then
  return redis.call('HSET', KEYS[1], unpack(ARGV, 3))
elseif what == 'ack' then
  return redis.call('XACK', KEYS[2], unpack(ARGV, 3))
elseif what == 'trim' then
  local last = field(redis.call('XINFO', 'STREAM', KEYS[2]), 'last-generated-id')
  local applied = string.match(redis.call('HGET', KEYS[1], 'applied_through') or '', '^%d+%-%d+$') or '0-0'
  local lacks = is_after(applied, ARGV[4]) and last ~= '0-0' and applied or ARGV[4]  -- one that never had any: none
  if is_after(lacks, last) then
    return redis.error_reply('ERR ' .. KEYS[2] .. ' ends at ' .. last .. ', before ' .. lacks .. ' that was read: '
      .. 'another has taken its place, and nothing of it is trimmed')
  end
  redis.call('HSET', KEYS[1], 'done_through', ARGV[4])
  return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3])
elseif what == 'lost' then
  return tell_lost(KEYS[2], KEYS[1], ARGV[3])
elseif what == 'consumers' then
  local deleted = {}
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[2], ARGV[3])) do
    if field(consumer, 'pending') == 0 and field(consumer, 'idle') > tonumber(ARGV[4]) then
      deleted[#deleted + 1] = field(consumer, 'name')
      redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[3], deleted[#deleted])
    end
  end
  return deleted
elseif what == 'release' then
  if redis.call('GET', KEYS[3]) == holder then
    return redis.call('SET', KEYS[3], holder, 'PX', 1)
  end
  return 0
end
return redis.error_reply('ERR unknown ' .. what)
