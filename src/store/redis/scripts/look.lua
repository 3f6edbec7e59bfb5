#!lua flags=no-writes
-- Reads the bounds of a log. KEYS: head, log. A head that is ahead of its entries is limited to them; a claim repairs it.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'earlier', 'last', 'safe')
local last = held[3] or '0'
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', '1')
local first = oldest[1] and string.match(oldest[1][1], '^%d+') or ''
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', '1')[1]
local ended = newest and string.match(newest[1], '^(%d+)%-0$')
if ended and string.match(last, '^%d+$') and tonumber(ended) < tonumber(last) then
  last = ended
end
return {held[1] or '', held[2] or '', last, held[4] or '', first}
