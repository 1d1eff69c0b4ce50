-- Answer one entry: publish its results and dead letters and acknowledge it, or do nothing at all.
-- Only who finds the entry pending publishes, so a repeat after a lost reply changes nothing. XACK comes last: an
-- XADD that fails must leave the entry pending. XLEN first: a key of another type fails before anything is written.
-- KEYS: images, scores, dead.  ARGV: group, entry, cap of scores, cap of dead, number of results, results...,
-- then for each dead letter: id, reason, error, payload.   Returns 1 if it published, 0 if the entry was not pending.
redis.call('XLEN', KEYS[2])
redis.call('XLEN', KEYS[3])
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if #pending == 0 then
  return 0
end
local results = tonumber(ARGV[5])
for i = 6, 5 + results do
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'result', ARGV[i])
end
for i = 6 + results, #ARGV, 4 do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'entry', ARGV[2], 'id', ARGV[i], 'reason', ARGV[i + 1],
    'error', ARGV[i + 2], 'deliveries', pending[1][4], 'payload', ARGV[i + 3])
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return 1
