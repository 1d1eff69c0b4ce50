-- Answer one entry: publish its results and dead letters, keep anomalous parts for review, and acknowledge it; or do
-- nothing at all.
-- Only who finds the entry pending publishes, so a repeat after a lost reply changes nothing. XACK comes last: an
-- XADD that fails must leave the entry pending. XLEN first: a key of another type fails before anything is written.
-- KEYS: images, scores, dead, review.  ARGV: group, entry, caps of scores, dead and review, number of results, number of
-- review fields, results..., review fields (7 a part, by REVIEW), then for each dead letter: id, reason, error, payload.
-- Returns 1 if it published, 0 if the entry was not pending.
local REVIEW = {'entry', 'id', 'why', 'score', 'threshold', 'model', 'image'}
for i = 2, 4 do
  redis.call('XLEN', KEYS[i])
end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if #pending == 0 then
  return 0
end
local results = tonumber(ARGV[6])
local parts = 8 + results
local dead = parts + tonumber(ARGV[7])
for i = 8, parts - 1 do
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'result', ARGV[i])
end
for i = parts, dead - 1, #REVIEW do
  local fields = {}
  for j, name in ipairs(REVIEW) do
    fields[2 * j - 1], fields[2 * j] = name, ARGV[i + j - 1]
  end
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', unpack(fields))
end
for i = dead, #ARGV, 4 do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'entry', ARGV[2], 'id', ARGV[i], 'reason', ARGV[i + 1],
    'error', ARGV[i + 2], 'deliveries', pending[1][4], 'payload', ARGV[i + 3])
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return 1
