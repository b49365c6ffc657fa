-- Sliding window: at most `limit` units are spent in any span of `period`. A lease may be spent until its
-- end, so its units count as long as a span that overlaps any instant before its end may begin: they are
-- added to the slot of the end, and slots count until `period` after their own end. Units that are reported as spent move
-- to the slot in which they were. Fields: `c` creation of the state, and the number of each slot with its units.

local SLOTS = 64
local slot_length = math.max(math.ceil(period / SLOTS), 1)
local function slot_of(instant)
  return math.floor(instant / slot_length)
end
local function expiry(number)
  return (number + 1) * slot_length + period
end

local current_slot, last_slot = slot_of(now), slot_of(now + lease)
local incarnation
local counts, is_changed = {}, {}
local function add(number, units)
  counts[number] = (counts[number] or 0) + units
  is_changed[number] = true
end
local was_set_back = false
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local field, count = all[index], tonumber(all[index + 1])
  if field == 'c' then
    incarnation = count
  else
    local number = tonumber(field)
    if expiry(number) <= now then
      redis.call('HDEL', KEYS[1], field)
    elseif number > last_slot then
      was_set_back = true
      redis.call('HDEL', KEYS[1], field)
      add(last_slot, count)
    else
      counts[number] = (counts[number] or 0) + count
    end
  end
end
if was_set_back then
  -- The slots of earlier leases have other numbers now: nothing can be reported about them.
  redis.call('HDEL', KEYS[1], 'c')
  incarnation = nil
end

local is_reported = reported > 0 and reported_incarnation == incarnation and (counts[reported_slot] or 0) >= reported
if is_reported then
  add(reported_slot, -reported)
  each_spent(function(instant, units)
    local number = math.min(slot_of(instant), reported_slot)
    if expiry(number) > now then
      add(number, units)
    end
  end)
else
  kept = 0
end
local used, leased = kept, kept
for number, count in pairs(counts) do
  used = used + count
  if number > current_slot then
    leased = leased + count
  end
end
local granted = units_to_grant(limit - used, leased)
local valid = lease_for(kept + granted)
local slot = slot_of(now + valid)
if kept + granted > 0 then
  add(slot, kept + granted)
end
if granted > 0 and not incarnation then
  incarnation = now
  set('c', now)
end
local oldest, newest
for number, count in pairs(counts) do
  if count > 0 then
    oldest = math.min(oldest or number, number)
    newest = math.max(newest or number, number)
  end
end
for number in pairs(is_changed) do
  set_slot(number, counts[number])
end
if newest and next(is_changed) then
  expire_after(expiry(newest) - now)
end
-- Leased units are taken for spent now: a gateway reports them before they would count longer.
local retry = oldest and expiry(math.min(oldest, current_slot)) - now or 0
local reset = newest and expiry(math.min(newest, current_slot)) - now or 0
return {now, granted, limit - used - granted, valid, retry, reset, incarnation or 0, slot, 0, kept}
