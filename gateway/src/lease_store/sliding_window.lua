-- Sliding window: at most `limit` units are spent in any span of `period`. A lease may be spent until its
-- end, so its units count as long as a span that overlaps any instant before its end may begin: they are
-- added to the slot of the end, and slots count until `period` after their own end. Fields: `c` creation of
-- the state, and the number of each slot with its units.

local SLOTS = 64
local slot_length = math.max(math.ceil(period / SLOTS), 1)
local slot = math.floor((now + lease) / slot_length)
local function expiry(number)
  return (number + 1) * slot_length + period
end

local incarnation, was_set_back
local counts = {}
local used, oldest, newest = 0, nil, nil
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local field, count = all[index], tonumber(all[index + 1])
  if field == 'c' then
    incarnation = count
  else
    local number = tonumber(field)
    if expiry(number) <= now then
      redis.call('HDEL', KEYS[1], field)
    else
      if number > slot then
        was_set_back = true
        redis.call('HDEL', KEYS[1], field)
        redis.call('HINCRBY', KEYS[1], text(slot), text(count))
        number = slot
      end
      counts[number] = (counts[number] or 0) + count
    end
  end
end
if was_set_back then
  -- The slots of earlier leases have other numbers now: nothing can be returned to them.
  redis.call('HDEL', KEYS[1], 'c')
  incarnation = nil
end
if returned > 0 and returned_incarnation == incarnation and (counts[returned_slot] or 0) >= returned then
  counts[returned_slot] = counts[returned_slot] - returned
  set(text(returned_slot), counts[returned_slot])
end
for number, count in pairs(counts) do
  if count > 0 then
    used = used + count
    oldest = math.min(oldest or number, number)
    newest = math.max(newest or number, number)
  end
end
local granted = units_to_grant(limit - used)
if granted > 0 then
  if not incarnation then
    incarnation = now
    set('c', now)
  end
  set(text(slot), (counts[slot] or 0) + granted)
  used = used + granted
  oldest, newest = oldest or slot, slot
  expire_after(expiry(slot) - now)
end
local retry = oldest and expiry(oldest) - now or 0
local reset = newest and expiry(newest) - now or 0
return {now, granted, limit - used, lease, retry, reset, incarnation or 0, slot, 0}
