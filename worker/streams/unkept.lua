-- Say in a line's state why a worker does not keep it, where nobody does; who is given the lease takes it away.
-- KEYS: lease, state.  ARGV: why.
if redis.call('GET', KEYS[1]) then
  return 0
end
redis.call('HDEL', KEYS[2], '')  -- a full server lets a script go on whose first write takes no memory
-- It holds for this epoch alone: releases that do not know of it take it away from nobody.
redis.call('HSET', KEYS[2], 'unkept', (redis.call('HGET', KEYS[2], 'epoch') or '0') .. ' ' .. ARGV[1])
return 1
