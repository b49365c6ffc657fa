-- Token bucket and leaky bucket as the generic cell rate algorithm (ITU-T I.371, annex A): `limit` units
-- at once, and one more each `period`, which here is in nanoseconds. Fields: `c` creation of the state,
-- `u` time of the last update, `d` debt at that time: nanoseconds in which the bucket will be full.
--
-- Units that are leased and may still be spent must not be refilled beyond a full bucket: else a gateway could
-- spend them together with a full one. So the debt does not fall below that of the outstanding leases. They are in
-- slots, whose numbers are fields: those of a lease in that of its end, and until the end of that slot. Then the bucket is
-- refilled in their place.
--
-- Units that are reported as spent are outstanding only until then: the debt is computed again from the last update on. What
-- was spent before it counts from it on, which is late.

local SLOTS = 32
local slot_length = math.max(math.ceil(lease / SLOTS), 1)
local function slot_of(instant)
  return math.floor(instant / slot_length) + 1
end

local last_slot = slot_of(now + lease)
local incarnation, updated, debt, leased = nil, now, 0, 0
local slots, is_changed = {}, {}
local function add(number, units)
  slots[number] = (slots[number] or 0) + units
  leased = leased + units
  is_changed[number] = true
end
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local field, value = all[index], tonumber(all[index + 1])
  if field == 'c' then
    incarnation = value
  elseif field == 'u' then
    updated = value
  elseif field == 'd' then
    debt = value
  else
    slots[tonumber(field)] = value
    leased = leased + value
  end
end

local is_new_state = false
if now < updated then
  -- The clock was set back: no time has passed, no lease lasts longer than from now on, and nothing can be
  -- reported about a lease that its slot does not tell any more.
  incarnation, is_new_state = now, true
  updated = now
  local later = 0
  for number, units in pairs(slots) do
    if number > last_slot then
      later = later + units
      add(number, -units)
    end
  end
  add(last_slot, later)
end

local is_reported = reported > 0 and reported_incarnation == incarnation and (slots[reported_slot] or 0) >= reported
local events = {}
for number, units in pairs(slots) do
  if number * slot_length <= now then
    table.insert(events, {number * slot_length, number, units})
  end
end
if is_reported then
  each_spent(function(instant, units)
    table.insert(events, {math.max(math.min(instant, reported_slot * slot_length), updated), reported_slot, units})
  end)
end
table.sort(events, function(one, other)
  return one[1] < other[1]
end)
local function drain_until(instant)
  if instant > updated then
    debt = math.max(debt - (instant - updated) * 1000, leased * period)
    updated = instant
  end
end
for _, event in ipairs(events) do
  drain_until(event[1])
  add(event[2], -math.min(event[3], slots[event[2]]))
end
drain_until(now)

if is_reported then
  -- If the slot has ended since the last update, the bucket was refilled in the place of these units: they are worth no more
  -- than the debt that is left, which was not lower at any time since then.
  add(reported_slot, -math.min(returned, slots[reported_slot]))
  debt = math.max(debt - returned * period, leased * period)
end
if not is_reported or slots[reported_slot] < kept then
  kept = 0
end
local before = debt
local left = math.max(math.floor((limit * period - debt) / period), 0)
local granted = units_to_grant(left, leased)
left = left - granted
debt = debt + granted * period
local valid = lease_for(kept + granted)
local slot = slot_of(now + valid)
if lease > 0 and kept + granted > 0 then
  if kept > 0 then
    add(reported_slot, -kept)
  end
  add(slot, kept + granted)
end
local last_end = now
for number, units in pairs(slots) do
  if units > 0 then
    last_end = math.max(last_end, number * slot_length)
  end
end
if granted > 0 or is_reported or is_new_state then
  incarnation = incarnation or now
  set('c', incarnation)
  set('u', updated)
  set('d', debt)
  for number in pairs(is_changed) do
    set_slot(number, slots[number])
  end
  -- The debt falls no further while leases are outstanding.
  expire_after(debt / 1000 + last_end - now)
end
local retry = math.max(math.ceil((debt + period - limit * period) / 1000), 0)
if leased >= limit then
  -- Nothing is refilled before a lease ends.
  local first_end = last_end
  for number, units in pairs(slots) do
    if units > 0 then
      first_end = math.min(first_end, number * slot_length)
    end
  end
  retry = math.max(retry, first_end - now)
end
return {
  now, granted, left, valid, integer(retry), integer(math.ceil(debt / 1000)), incarnation or 0, slot, integer(before), kept
}
