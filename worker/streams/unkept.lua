-- Say in a line's state why a worker does not keep it, where nobody does; who is given the lease takes it away.
-- KEYS: lease, state.  ARGV: why.
if redis.call('GET', KEYS[1]) then
  return 0
end
redis.call('HDEL', KEYS[2], '')  -- a full server lets a script go on whose first write takes no memory
redis.call('HSET', KEYS[2], 'unkept', ARGV[1])
return 1
