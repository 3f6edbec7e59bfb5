#!lua
-- Takes a log over, and says what is there, and what time it is here. KEYS: head, log. ARGV: nonce, an epoch for the
-- case that one begins, number ('' to draw a new fence with this nonce; else the log must be under the very fence),
-- whether replicas count.
-- When another server became primary since (or this one was restarted), what it did not have is gone: the log and its
-- position have gone back together. Then a new epoch begins where the log ends now.
local head, log = KEYS[1], KEYS[2]
local EARLIER_LEN_MAX = 1024
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local held = redis.call('HMGET', head, 'epoch', 'earlier', 'last', 'number', 'replid', 'position', 'heard_at', 'nonce',
  'turn', 'safe', 'bytes', 'feed', 'format')
if held[13] and held[13] ~= '1' then
  return {'format', held[13]}
end
-- Doubles count exactly up to 15 digits. An empty turn, time or position is none.
local function odd(index, len_max, pattern)
  local value = held[index]
  return value and value ~= '' and not (#value <= len_max and string.match(value, pattern))
end
for index, field in pairs({[3] = 'last', [4] = 'number', [7] = 'heard_at', [9] = 'turn', [10] = 'safe'}) do
  if odd(index, 15, '^%d+$') then
    return {'field', field, held[index]}
  end
end
if odd(6, 20, '^%d+$') then
  return {'field', 'position', held[6]}
end
if odd(11, 16, '^-?%d+$') then
  return {'field', 'bytes', held[11]}
end
if odd(1, 8, '^%x+$') then
  return {'field', 'epoch', held[1]}
end
-- What is no pair of an epoch and its end is left over.
if string.gsub(held[2] or '', '%x+:%d+ ', '') ~= '' then
  return {'field', 'earlier', held[2]}
end
if held[1] and not held[3] then
  return {'field', 'last', ''}
end
-- A head that was deleted alone: the log goes on behind its newest entry, in another epoch, and has lost its position.
-- Entries that were deleted alone: the log goes on behind its former end, from the position of the head. Either way the
-- loss is reported to each claim until something is appended, which stores a time and an entry.
local function offset_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end
local function epoch_of(entry)
  local epoch = string.match(entry[2][2] or '', '"id":"(%x+)%-%d+"')
  return epoch and #epoch <= 8 and string.format('%08x', tonumber(epoch, 16)) or ''
end
local function at_or_after(offset)
  return redis.call('XRANGE', log, string.format('%.0f-0', offset), '+', 'COUNT', '1')[1]
end
-- The epochs of the entries and their ends, each found by halving: the entries of one lie side by side.
local function epochs(newest)
  local found, first = '', redis.call('XRANGE', log, '-', '+', 'COUNT', '1')[1]
  while first do
    local epoch, within, beyond = epoch_of(first), offset_of(first), newest + 1
    while within + 1 < beyond do
      local middle = math.floor((within + beyond) / 2)
      local entry = at_or_after(middle)
      if entry and epoch_of(entry) == epoch then
        within = offset_of(entry)
      else
        beyond = middle
      end
    end
    if epoch ~= '' then
      found = found .. string.format('%s:%.0f ', epoch, within)
    end
    first = at_or_after(within + 1)
  end
  return found
end
local lost = ''
local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', '1')[1]
if newest then
  local offset = string.match(newest[1], '^(%d+)%-0$')
  if not offset or #offset > 15 or held[3] and tonumber(offset) > tonumber(held[3]) then
    return {'foreign', newest[1]}
  end
  if not held[3] then
    held[3] = offset
    held[2] = epochs(tonumber(offset))
  end
end
if held[3] and tonumber(held[3]) > 0 and (not newest or not held[7]) then
  lost = '1'
end
local epoch, earlier, last, number = held[1] or ARGV[2], held[2] or '', held[3] or '0', held[4] or '0'
local turn, safe = '0', held[10] or last
if ARGV[3] == '' then
  number = string.format('%.0f', tonumber(number) + 1)
elseif number ~= ARGV[3] or held[8] ~= ARGV[1] then
  return {'fenced'}
else
  -- What was sent under an earlier claim and arrives only now finds a turn that is over.
  turn = string.format('%.0f', tonumber(held[9] or '0') + 1)
end
if held[1] and held[5] ~= replid then
  if last ~= '0' then
    earlier = earlier .. epoch .. ':' .. last .. ' '
  end
  while #earlier > EARLIER_LEN_MAX do
    earlier = string.gsub(earlier, '^%S+ ', '', 1)
  end
  epoch = ARGV[2]
end
if tonumber(safe) > tonumber(last) then
  safe = last
end
redis.call('HSET', head, 'epoch', epoch, 'earlier', earlier, 'last', last, 'number', number, 'nonce', ARGV[1],
  'turn', turn, 'replid', replid)
if last ~= '0' and redis.call('TYPE', log).ok == 'none' then
  -- An empty stream with this end: an append to a log that is not there is refused.
  redis.call('XADD', log, last .. '-0', 'event', '')
  redis.call('XTRIM', log, 'MAXLEN', '0')
  redis.call('HSET', head, 'bytes', '0', 'first', string.format('%.0f', tonumber(last) + 1))
end
if ARGV[4] == '1' then
  redis.call('HSET', head, 'safe', safe)
elseif held[10] then
  redis.call('HDEL', head, 'safe')
end
local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', '1')
local first = oldest[1] and string.match(oldest[1][1], '^%d+') or ''
local time = redis.call('TIME')
local millis = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return {epoch, earlier, last, safe, first, number, turn, held[6] or '', held[7] or '', millis, lost, held[12] or ''}
