#!lua
-- Replaces the lease of a sink if its fence is the expected one. KEYS: the sink. ARGV: number and nonce that are expected
-- ('' for a sink that never had an owner); number, nonce and owner ('' for none) of the new lease. Returns 1 if the new
-- lease is the present one.
local held = redis.call('HMGET', KEYS[1], 'number', 'nonce')
local number, nonce = held[1] or '', held[2] or ''
if number == ARGV[3] and nonce == ARGV[4] then
  -- An earlier call applied it, and its answer was lost.
  return 1
end
if number ~= ARGV[1] or nonce ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'number', ARGV[3], 'nonce', ARGV[4], 'holder', ARGV[5])
return 1
