-- What a keeper does, if its epoch still stands: else an error that begins with FENCED.
-- KEYS: state, images, lease.  ARGV: epoch, what, then by what:
--   renew   holder, milliseconds
--   read    group, consumer, count, id ('>' or where to go on in the pending entries)
--   commit  field, value, ...                  of the state hash, all at once
--   ack     group, entry, ...
--   trim    lowest id to keep, done_through
--   release holder
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return redis.error_reply('FENCED epoch ' .. ARGV[1] .. ' is no longer the line\'s')
end
local what = ARGV[2]
if what == 'renew' then
  local holder = redis.call('GET', KEYS[3])
  if holder and holder ~= ARGV[3] then
    return redis.error_reply('FENCED the lease is held by ' .. holder)
  end
  return redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
elseif what == 'read' then
  return redis.call('XREADGROUP', 'GROUP', ARGV[3], ARGV[4], 'COUNT', ARGV[5], 'STREAMS', KEYS[2], ARGV[6])
elseif what == 'commit' then
  return redis.call('HSET', KEYS[1], unpack(ARGV, 3))
elseif what == 'ack' then
  return redis.call('XACK', KEYS[2], unpack(ARGV, 3))
elseif what == 'trim' then
  redis.call('HSET', KEYS[1], 'done_through', ARGV[4])
  return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3])
elseif what == 'release' then
  if redis.call('GET', KEYS[3]) == ARGV[3] then
    return redis.call('SET', KEYS[3], ARGV[3], 'PX', 1)
  end
  return 0
end
return redis.error_reply('ERR unknown ' .. what)
