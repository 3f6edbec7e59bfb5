#!lua
-- Moves a consumer's cursor that is where it is taken to be. KEYS: cursors of a stream. ARGV: consumer, from (empty:
-- nowhere), to. Returns whether it is there now.
local found = redis.call('HMGET', KEYS[1], ARGV[1])[1] or ''
if found == ARGV[2] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  return 1
end
return found == ARGV[3] and 1 or 0
