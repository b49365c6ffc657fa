#!/usr/bin/env bash
# Functions of docker/compose and docker/stack that read .prod.env. As Compose does, they take each value literally, without the
# quotes around it, and prefer a variable of the environment.

# Prints a setting.
setting() { # NAME DEFAULT
    local value
    value=${!1-$(sed -n "s/^$1=//p" .prod.env | tail -n 1)}
    case $value in
        \"*\" | \'*\') value=${value:1:-1} ;;
    esac
    echo "${value:-$2}"
}

# Returns true if a setting is 1, and false if it is empty.
is_set() { # NAME
    local value
    value=$(setting "$1" "")
    [[ -z $value || $value = 1 ]] || {
        echo "$0: $1 is \`$value\`: it must be 1 or empty" >&2
        exit 1
    }
    [ -n "$value" ]
}
