#!lua
-- Takes a ticket: one caller gets its value. KEYS: the ticket. Returns nil if it does not exist.
local value = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return value
