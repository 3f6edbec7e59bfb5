#!lua
-- Deletes a damaged key, unless it changed since it was read. KEYS: the key. ARGV: the field of a hash (empty: the key
-- is a string), the value that was read.
local found
if ARGV[1] == '' then
  found = redis.call('GET', KEYS[1])
else
  found = redis.call('HMGET', KEYS[1], ARGV[1])[1]
end
if found ~= ARGV[2] then
  return 0
end
return redis.call('DEL', KEYS[1])
