#!lua
-- Replaces the lease record of a stream or a sink if its fence is the expected one. KEYS: the hash with the record. ARGV:
-- number and nonce that are expected ('' where there never was an owner); number, nonce and owner ('' for none) of the
-- new record; then fields and values that the change also sets. Returns 1 if the new record is the present one. Writes
-- under the former fence are rejected from here on.
local held = redis.call('HMGET', KEYS[1], 'number', 'nonce', 'format')
if held[3] and held[3] ~= '1' then
  return 0
end
local number, nonce = held[1] or '', held[2] or ''
if number == ARGV[3] and nonce == ARGV[4] then
  -- An earlier call applied it, and its answer was lost.
  return 1
end
if number ~= ARGV[1] or nonce ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'number', ARGV[3], 'nonce', ARGV[4], 'holder', ARGV[5], unpack(ARGV, 6))
return 1
