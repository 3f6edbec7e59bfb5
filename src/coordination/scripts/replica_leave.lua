#!lua
-- Removes a replica. KEYS: the set of replicas, the caller's membership. ARGV: the caller.
redis.call('DEL', KEYS[2])
return redis.call('SREM', KEYS[1], ARGV[1])
