#!lua
-- Lets the lock live on, if it is still the caller's. KEYS: lock. ARGV: owner, life.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
