-- Take over what other consumers were given and have not answered for a while, one page of the pending list. What the
-- consumer itself was given is left alone: XAUTOCLAIM makes no difference, so it is called for each of the others'.
-- Entries that were trimmed meanwhile end as dead letters here: from Redis 7.0 on XAUTOCLAIM drops them; 6.2 hands them
-- over, and they are found when the own pending entries are read.
-- KEYS: images, dead, state.  ARGV: group, consumer, idle milliseconds, cursor, count, cap of dead.
-- Returns {next cursor, number taken over, number lost}.
redis.call('XLEN', KEYS[2])  -- keys of another type fail before anything is claimed
redis.call('HGET', KEYS[3], 'answered')
local page = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], ARGV[4], '+', ARGV[5])
local taken, lost = 0, 0
for _, pending in ipairs(page) do
  if pending[2] ~= ARGV[2] then
    local reply = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], pending[1], 'COUNT', 1, 'JUSTID')
    taken = taken + #reply[2]
    for _, entry in ipairs(reply[3] or {}) do
      lost = lost + 1
      redis.call('HINCRBY', KEYS[3], 'answered', 1)
      redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'entry', entry, 'id', '', 'reason', 'lost',
        'error', 'the entry was trimmed from the stream before it was answered', 'deliveries', 1, 'payload', '')
    end
  end
end
if #page < tonumber(ARGV[5]) then
  return {'0-0', taken, lost}
end
return {'(' .. page[#page][1], taken, lost}
