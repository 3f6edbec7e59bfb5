#!lua flags=no-writes
-- Reads the vault. KEYS: token, generation, pause.
local token = redis.call('HMGET', KEYS[1], 'generation', 'lifetime', 'secret')
local remaining = redis.call('PTTL', KEYS[1])
local pause = redis.call('PTTL', KEYS[3])
return {redis.call('GET', KEYS[2]) or '0', token[1], token[2], token[3], remaining, pause}
