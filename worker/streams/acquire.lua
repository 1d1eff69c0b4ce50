-- Take a line's lease and a new epoch.
-- KEYS: lease, state.  ARGV: holder, milliseconds, highest epoch on disk, name whose lease may be taken over or ''.
-- Returns {epoch, '', 0} or {0, holder, milliseconds until its lease ends}. A holder is NAME#INSTANCE; a process that
-- starts may take over its own name's. The holder stands beside the epoch: a replica that was promoted without the last
-- one gives the same number again.
local holder = redis.call('GET', KEYS[1])
local own = holder and ARGV[4] ~= '' and string.match(holder, '^(.*)#') == ARGV[4]
if holder and holder ~= ARGV[1] and not own then
  return {0, holder, redis.call('PTTL', KEYS[1])}
end
redis.call('HDEL', KEYS[2], '', 'unkept')  -- a full server lets a script go on whose first write takes no memory
local epoch = math.max(tonumber(redis.call('HGET', KEYS[2], 'epoch') or 0), tonumber(ARGV[3])) + 1
redis.call('HSET', KEYS[2], 'epoch', string.format('%d', epoch), 'holder', ARGV[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {epoch, '', 0}
