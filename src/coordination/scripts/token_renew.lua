#!lua
-- Renews the caller's lock. KEYS: lock. ARGV: owner, lifetime in ms.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
