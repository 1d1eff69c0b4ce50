-- Note that something is about to be tried; returns how often it was, and nobody took the mark away.
-- KEYS: attempts.  ARGV: what, seconds after which all marks are forgotten if none comes.
redis.call('HDEL', KEYS[1], '')  -- a full server lets a script go on whose first write takes no memory
local times = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return times
