#!lua
-- Takes a log over: a new fence, and what is there. KEYS: head, log. ARGV: nonce, an epoch for the case that one begins.
-- When another server became primary since (or this one was restarted), what it did not have is gone: the log and its
-- position have gone back together. Then a new epoch begins where the log ends now.
local head, log = KEYS[1], KEYS[2]
local EARLIER_LEN_MAX = 1024
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local held = redis.call('HMGET', head, 'epoch', 'earlier', 'last', 'number', 'replid', 'position', 'heard_at')
local epoch, earlier, last, number = held[1] or ARGV[2], held[2] or '', held[3] or '0', held[4] or '0'
if held[1] and held[5] ~= replid then
  if last ~= '0' then
    earlier = earlier .. epoch .. ':' .. last .. ' '
  end
  while #earlier > EARLIER_LEN_MAX do
    earlier = string.gsub(earlier, '^%S+ ', '', 1)
  end
  epoch = ARGV[2]
end
number = string.format('%.0f', tonumber(number) + 1)
redis.call('HSET', head, 'epoch', epoch, 'earlier', earlier, 'last', last, 'number', number, 'nonce', ARGV[1],
  'turn', '0', 'replid', replid)
local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', '1')
local first = oldest[1] and string.match(oldest[1][1], '^%d+') or ''
return {epoch, earlier, last, number, held[6] or '', held[7] or '', first}
