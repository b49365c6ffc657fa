-- Token bucket and leaky bucket as the generic cell rate algorithm (ITU-T I.371, annex A): `limit` units
-- at once, and one more each `period`, which here is in nanoseconds. Fields: `c` creation of the state,
-- `u` time of the last update, `d` debt at that time: nanoseconds in which the bucket will be full.
--
-- Units that are leased and may still be spent must not be refilled beyond a full bucket: else a gateway could
-- spend them together with a full one. So the debt does not fall below that of the outstanding leases.
-- They are counted in two generations: `bn` units leased since `bs`, which end by `be`, and `an` units
-- leased since `as`, which end by `ae`. A generation collects leases for the duration of one, so that the earlier one
-- has ended when the next begins.
--
-- Once a generation has ended, what its leases have left can be returned only as far as the bucket was not
-- refilled in its place: `am` and `bm` are the lowest debt since then.

local fields = redis.call('HMGET', KEYS[1], 'c', 'u', 'd', 'an', 'as', 'ae', 'bn', 'bs', 'be', 'am', 'bm')
local incarnation = tonumber(fields[1])
local updated, debt = tonumber(fields[2]) or now, tonumber(fields[3]) or 0
local a_units, a_start, a_end = tonumber(fields[4]) or 0, tonumber(fields[5]) or 0, tonumber(fields[6]) or 0
local b_units, b_start, b_end = tonumber(fields[7]) or 0, tonumber(fields[8]) or 0, tonumber(fields[9]) or 0
local a_lowest, b_lowest = tonumber(fields[10]) or 0, tonumber(fields[11]) or 0

local is_changed = false
if now < updated then
  -- The clock was set back: no time has passed, no lease lasts longer than from now on, and nothing can be
  -- returned to a generation that its end does not tell any more.
  incarnation, is_changed = now, true
  updated = now
  a_end, b_end = math.min(a_end, now + 2 * lease), math.min(b_end, now + 2 * lease)
  b_start = math.min(b_start, now)
end

local function drain_until(instant)
  if instant > updated then
    debt = math.max(debt - (instant - updated) * 1000, (a_units + b_units) * period)
    updated = instant
  end
end
if a_units > 0 and a_end <= now then
  drain_until(a_end)
  a_units, a_lowest = 0, debt
end
if b_units > 0 and b_end <= now then
  drain_until(b_end)
  b_units, b_lowest = 0, debt
end
drain_until(now)
a_lowest, b_lowest = math.min(a_lowest, debt), math.min(b_lowest, debt)

if returned > 0 and returned_incarnation == incarnation then
  -- The slot of a lease is its end, which tells its generation.
  local credit = returned * period
  if returned_slot >= b_start + lease and returned_slot <= b_end then
    if b_units > 0 then
      b_units = math.max(b_units - returned, 0)
    else
      credit = math.min(credit, b_lowest)
    end
  elseif returned_slot >= a_start + lease and returned_slot <= a_end then
    if a_units > 0 then
      a_units = math.max(a_units - returned, 0)
    else
      credit = math.min(credit, a_lowest)
    end
  else
    credit = 0
  end
  debt = math.max(debt - credit, (a_units + b_units) * period)
  a_lowest, b_lowest = math.max(a_lowest - credit, 0), math.max(b_lowest - credit, 0)
  is_changed = true
end

local before = debt
local left = math.max(math.floor((limit * period - debt) / period), 0)
local granted = units_to_grant(left)
left = left - granted
if granted > 0 then
  debt = debt + granted * period
  if lease > 0 then
    if b_units == 0 or now >= b_start + lease then
      -- A generation of which everything was returned before its end need not be kept.
      if b_units > 0 or b_end <= now then
        -- The one before it has ended, unless the clock was set back.
        a_start = a_units > 0 and a_start or b_start
        a_units, a_end, a_lowest = a_units + b_units, b_end, b_lowest
      end
      b_units, b_start = 0, now
    end
    b_units, b_end = b_units + granted, now + lease
  end
  incarnation = incarnation or now
  is_changed = true
end
if is_changed then
  set('c', incarnation)
  set('u', updated)
  set('d', debt)
  set('an', a_units)
  set('as', a_start)
  set('ae', a_end)
  set('bn', b_units)
  set('bs', b_start)
  set('be', b_end)
  set('am', a_lowest)
  set('bm', b_lowest)
  -- The debt falls no further while leases are outstanding.
  expire_after(debt / 1000 + math.max(a_end - now, b_end - now, 0))
end
local retry = math.max(math.ceil((debt + period - limit * period) / 1000), 0)
if a_units + b_units >= limit then
  -- Nothing is refilled before a lease ends.
  retry = math.max(retry, (a_units > 0 and a_end or b_end) - now)
end
return {
  now, granted, left, lease, integer(retry), integer(math.ceil(debt / 1000)), incarnation or 0, now + lease,
  integer(before)
}
