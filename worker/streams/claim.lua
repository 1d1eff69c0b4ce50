-- Take over what a consumer was given and has not answered for a while, one page of the pending list.
-- Entries that were trimmed meanwhile end as dead letters here: from Redis 7.0 on XAUTOCLAIM drops them; 6.2 hands them
-- over, and they are found when the own pending entries are read.
-- KEYS: images, dead, state.  ARGV: group, consumer, idle milliseconds, cursor, count, cap of dead.
-- Returns {next cursor, number taken over, number lost}.
redis.call('XLEN', KEYS[2])  -- keys of another type fail before anything is claimed
redis.call('HGET', KEYS[3], 'answered')
local reply = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5], 'JUSTID')
local lost = reply[3] or {}
for _, entry in ipairs(lost) do
  redis.call('HINCRBY', KEYS[3], 'answered', 1)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'entry', entry, 'id', '', 'reason', 'lost',
    'error', 'the entry was trimmed from the stream before it was answered', 'deliveries', 1, 'payload', '')
end
return {reply[1], #reply[2], #lost}
