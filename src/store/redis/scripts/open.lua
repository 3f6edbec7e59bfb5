#!lua
-- Claims a log, and returns its state and the server's time. KEYS: head, log. ARGV: nonce, the epoch to use if a new
-- one begins, number ('' to create a new fence with this nonce; otherwise the log must have exactly this fence),
-- whether durability requires replicas, the epochs that the caller has read, each with its last entry, the newest at
-- the end. A new epoch begins at the present end of the log if a reader may have seen entries after that end: another
-- server became primary or this one was restarted, the caller has read more, or the log and its head disagree.
local head, log = KEYS[1], KEYS[2]
local EARLIER_LEN_MAX = 1024
-- The longest position: an opaque text behind a mark.
local POSITION_LEN_MAX = 1025
-- One of this number of newest entries has the platform's sequence number.
local NUMBERED_WITHIN = 64
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local held = redis.call('HMGET', head, 'epoch', 'earlier', 'last', 'number', 'replid', 'position', 'heard_at', 'nonce',
  'turn', 'safe', 'bytes', 'feed', 'format', 'damaged', 'holes')
if held[13] and held[13] ~= '1' then
  return {'format', held[13]}
end
-- Normalizes each field that an append compares or increments. Doubles are exact up to 15 digits.
local function text(number)
  return string.format('%.0f', number)
end
local function odd(value, len_max, pattern)
  return value and not (#value <= len_max and string.match(value, pattern))
end
for index, field in pairs({[3] = 'last', [4] = 'number', [9] = 'turn', [10] = 'safe', [15] = 'holes'}) do
  if odd(held[index], 15, '^%d+$') then
    return {'field', field, held[index]}
  end
  held[index] = held[index] and text(tonumber(held[index]))
end
if odd(held[7], 16, '^-?%d+$') then
  return {'field', 'heard_at', held[7]}
end
if odd(held[6], 20, '^%d*$') and odd(held[6], POSITION_LEN_MAX, '^=.') then
  return {'field', 'position', held[6]}
end
if odd(held[11], 16, '^-?%d+$') then
  return {'field', 'bytes', held[11]}
end
held[11] = held[11] and text(tonumber(held[11]))
if odd(held[1], 8, '^%x+$') then
  return {'field', 'epoch', held[1]}
end
held[1] = held[1] and string.format('%08x', tonumber(held[1], 16))
if held[1] == '00000000' then
  return {'field', 'epoch', held[1]}
end
-- Anything left after removing pairs of epoch and end is invalid.
if string.gsub(held[2] or '', '%x+:%d+ ', '') ~= '' then
  return {'field', 'earlier', held[2]}
end
if held[1] and not held[3] then
  return {'field', 'last', ''}
end
if held[3] and tonumber(held[3]) > 0 and not held[1] then
  return {'field', 'epoch', ''}
end
local function offset_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end
local function envelope_of(entry)
  return entry[2][2] or ''
end
local function epoch_of(entry)
  local epoch = string.match(envelope_of(entry), '"id":"(%x+)%-%d+"')
  return epoch and #epoch <= 8 and string.format('%08x', tonumber(epoch, 16)) or ''
end
local function at_or_after(offset)
  return redis.call('XRANGE', log, text(offset) .. '-0', '+', 'COUNT', '1')[1]
end
-- Whether a writer of this log added the entry: its envelope contains its offset.
local function is_own(entry)
  local offset = string.match(envelope_of(entry), '^{"specversion":"1%.0","id":"%x+%-(%d+)"')
  return offset and entry[1] == offset .. '-0'
end
-- The epochs of the entries and their ends, each by binary search: the entries of one epoch are adjacent.
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
      found = found .. epoch .. ':' .. text(within) .. ' '
    end
    first = at_or_after(within + 1)
  end
  return found
end
-- The position that the entries cover, from the newest entry with the platform's sequence number.
local function position()
  for _, entry in ipairs(redis.call('XREVRANGE', log, '+', '-', 'COUNT', NUMBERED_WITHIN)) do
    local number = string.match(envelope_of(entry), ',"platformsequence":"(%d+)"')
    if number then
      return number
    end
  end
  return ''
end
local function go_to(found)
  local feed = string.match(held[12] or '', '^%x+')
  held[6], held[12] = found, feed and feed .. ' ' .. found or ''
end
-- Whether the head's epochs include this entry.
local function is_of_lineage(entry)
  local epoch = epoch_of(entry)
  if epoch == '' or epoch == held[1] then
    return true
  end
  for known, ended in string.gmatch(held[2] or '', '(%x+):(%d+) ') do
    if string.format('%08x', tonumber(known, 16)) == epoch and tonumber(ended) >= offset_of(entry) then
      return true
    end
  end
  return false
end
-- The server's description of the stream; empty if there is no stream.
local about = {}
local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', '1')[1]
local facts = redis.pcall('XINFO', 'STREAM', log)
for index = 1, #facts, 2 do
  about[facts[index]] = facts[index + 1]
end
local top = about['last-generated-id']
local top_offset = tonumber(string.match(top or '0-0', '^%d+'))
if newest and not string.match(newest[1], '^%d+%-0$') or newest and #newest[1] > 17 then
  return {'foreign', newest[1]}
end
-- If only the head was deleted: the log continues after its newest entry, in a new epoch, without a position. If only
-- the entries were deleted: the log continues after its former end, from the position of the head. In both cases each
-- claim reports the loss until an append stores a time and an entry. If head and log disagree, a separate field keeps
-- the loss until then.
local parted, damaged = false, held[14] == '1'
local holes = tonumber(held[15] or '0')
if newest and not held[3] then
  held[3] = text(offset_of(newest))
  held[2] = epochs(tonumber(held[3]))
elseif newest and offset_of(newest) > tonumber(held[3]) then
  -- The head is behind its log, for example after a restore: the log keeps entries of its own writers.
  local behind = at_or_after(tonumber(held[3]) + 1)
  for _, entry in ipairs({behind, newest}) do
    if not is_own(entry) then
      return {'foreign', entry[1]}
    end
  end
  held[3] = text(offset_of(newest))
  held[2] = epochs(tonumber(held[3]))
  go_to(position())
  parted, damaged, held[1] = true, true, nil
elseif newest and not damaged and offset_of(newest) < tonumber(held[3]) then
  -- The log is behind its head: the position returns to that of the last entry. Offsets that the stream has used are
  -- not used again: Redis rejects them.
  local ended = offset_of(newest)
  held[2] = string.gsub(held[2] or '', '(%x+):(%d+) ', function(epoch, last)
    return epoch .. ':' .. text(math.min(tonumber(last), ended)) .. ' '
  end) .. held[1] .. ':' .. text(ended) .. ' '
  if top_offset <= tonumber(held[3]) then
    held[3] = text(math.max(ended, top_offset))
  end
  go_to(position())
  parted, damaged = true, true
end
if newest and held[1] and not (is_of_lineage(newest) and is_of_lineage(about['first-entry'])) then
  -- Another program changed the head or the log: the epochs come from the entries, and a new epoch begins.
  held[2] = epochs(tonumber(held[3]))
  parted, held[1] = true, nil
end
if newest then
  -- Entries that are missing between the oldest one and the end, in addition to those already reported.
  local missing = tonumber(held[3]) - offset_of(about['first-entry']) + 1 - about['length']
  damaged = damaged or missing > holes
  holes = math.max(missing, 0)
end
if top_offset > tonumber(held[3] or '0') then
  return {'ahead', top, newest and newest[1] or held[3] and held[3] .. '-0' or '0-0'}
end
local lost = damaged and '1' or ''
if held[3] and tonumber(held[3]) > 0 and (not newest or not held[7]) then
  lost = '1'
end
local epoch, earlier, last, number = held[1] or ARGV[2], held[2] or '', held[3] or '0', held[4] or '0'
local turn, safe = '0', held[10] or last
if ARGV[3] == '' then
  number = text(tonumber(number) + 1)
elseif number ~= ARGV[3] or held[8] ~= ARGV[1] then
  return {'fenced'}
else
  -- A delayed append of an earlier claim has an outdated turn, and is rejected.
  turn = text(tonumber(held[9] or '0') + 1)
end
-- Whether the caller has read entries of this epoch after its end, or a later epoch.
local function was_rolled_back()
  local seen, is_newest = nil, false
  for known, ended in string.gmatch(ARGV[5], '(%x+):(%d+) ') do
    seen, is_newest = known == epoch and tonumber(ended) or seen, known == epoch
  end
  return seen and (not is_newest or seen > tonumber(last))
end
if parted then
  epoch = ARGV[2]
elseif held[1] and (held[5] ~= replid or was_rolled_back()) then
  if last ~= '0' then
    earlier = earlier .. epoch .. ':' .. last .. ' '
  end
  epoch = ARGV[2]
end
while #earlier > EARLIER_LEN_MAX do
  earlier = string.gsub(earlier, '^%S+ ', '', 1)
end
if tonumber(safe) > tonumber(last) then
  safe = last
end
redis.call('HSET', head, 'epoch', epoch, 'earlier', earlier, 'last', last, 'number', number, 'nonce', ARGV[1],
  'turn', turn, 'replid', replid)
if held[11] then
  redis.call('HSET', head, 'bytes', held[11])
end
if parted then
  redis.call('HSET', head, 'position', held[6] or '', 'feed', held[12] or '')
end
if damaged then
  redis.call('HSET', head, 'damaged', '1')
end
if text(holes) ~= (held[15] or '0') then
  redis.call('HSET', head, 'holes', text(holes))
end
if last ~= '0' and not top then
  -- Creates an empty stream with this end: appends to a missing log are rejected.
  redis.call('XADD', log, last .. '-0', 'event', '')
  redis.call('XTRIM', log, 'MAXLEN', '0')
  redis.call('HSET', head, 'bytes', '0', 'first', text(tonumber(last) + 1))
end
if ARGV[4] == '1' then
  redis.call('HSET', head, 'safe', safe)
elseif held[10] then
  redis.call('HDEL', head, 'safe')
end
local first = newest and string.match(about['first-entry'][1], '^%d+') or ''
local time = redis.call('TIME')
local millis = text(time[1] * 1000 + math.floor(time[2] / 1000))
return {epoch, earlier, last, safe, first, number, turn, held[6] or '', held[7] or '', millis, lost, held[12] or ''}
