#!lua
-- Moves a consumer's cursor by compare-and-set. KEYS: cursors of a stream. ARGV: consumer, expected cursor ('' for none),
-- new cursor. Returns 1 if the cursor is the new one.
local found = redis.call('HMGET', KEYS[1], ARGV[1])[1] or ''
if found == ARGV[2] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  return 1
end
return found == ARGV[3] and 1 or 0
