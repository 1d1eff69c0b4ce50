-- Answer one entry: publish its results and dead letters, keep anomalous parts for review, and acknowledge it; or do
-- nothing at all.
-- Only who finds the entry pending publishes, so a repeat after a lost reply changes nothing. XACK comes last: an
-- XADD that fails must leave the entry pending. XLEN first: a key of another type fails before anything is written.
-- Where memory is full it goes on all the same: what answers makes room.
-- Each entry is counted when it is answered, so that those that nobody answers can be told: see lost.lua.
-- KEYS: images, scores, dead, review, state.  ARGV: group, entry, caps of scores, dead and review, most bytes in review, number
-- of results, number of review fields, results..., review fields (8 a part, by REVIEW), then for each dead letter: id,
-- reason, error, payload. Returns 1 if it published, 0 if the entry was not pending.
for i = 2, 4 do
  redis.call('XLEN', KEYS[i])
end
redis.call('HDEL', KEYS[5], '')  -- a full server lets a script go on whose first write takes no memory
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if #pending == 0 then
  return 0
end
local results = tonumber(ARGV[7])
local parts = 9 + results
local dead = parts + tonumber(ARGV[8])
for i = 9, parts - 1 do
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'result', ARGV[i])
end
for i = parts, dead - 1, #REVIEW do
  keep_for_review(KEYS[4], ARGV[5], tonumber(ARGV[6]), ARGV, i)
end
for i = dead, #ARGV, 4 do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'entry', ARGV[2], 'id', ARGV[i], 'reason', ARGV[i + 1],
    'error', ARGV[i + 2], 'deliveries', pending[1][4], 'payload', ARGV[i + 3])
end
redis.call('HINCRBY', KEYS[5], 'answered', 1)
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return 1
