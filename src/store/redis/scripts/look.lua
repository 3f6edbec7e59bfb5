#!lua flags=no-writes
-- How far a log goes. KEYS: head, log.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'earlier', 'last', 'safe')
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', '1')
local first = oldest[1] and string.match(oldest[1][1], '^%d+') or ''
return {held[1] or '', held[2] or '', held[3] or '0', held[4] or '', first}
