# Made by src/cli/completions.rs from what --help says; do not edit.

_aegis_agent() {
    local cur=${COMP_WORDS[COMP_CWORD]} verb='' option='' joined='' word
    local -a words=() global=(-h --help -s --nats-url --creds --nkey --user --password-file --token-file --tlsca --tlscert --tlskey --context --inbox-prefix --timeout --bucket --js-domain --env-file -v --verbose -V --version)
    COMPREPLY=()
    # bash takes words apart at = and :, and both stand in values, too.
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
            [=:]*) [[ $option ]] || joined=yes; continue ;;
        esac
        if [[ $option || $joined ]]; then
            option='' joined=''
            continue
        fi
        case $word in
            --bucket | --context | --creds | --drain-file | --env-file | --exec | --format | --group | --health-exec | --health-failures | --health-tcp | --health-timeout | --history | --inbox-prefix | --instance | --interval | --js-domain | --marker-ttl | --max-age | --max-removals | --meta | --metrics-file | --nats-url | --nkey | --only | --output | --password-file | --replicas | --server | --service | --service-version | --settle | --stale-after | --status | --storage | --timeout | --tlsca | --tlscert | --tlskey | --token-file | --ttl | --user | -s) option=$word ;;
            -*) ;;
            *) verb=${verb:-$word} ;;
        esac
    done
    if [[ $option && $cur == = ]]; then
        cur=''
    elif [[ $joined || $cur == [=:]* ]]; then
        return
    fi
    case "$verb $option" in
        *" --creds") compopt -o default ;;
        *" --nkey") compopt -o default ;;
        *" --password-file") compopt -o default ;;
        *" --token-file") compopt -o default ;;
        *" --tlsca") compopt -o default ;;
        *" --tlscert") compopt -o default ;;
        *" --tlskey") compopt -o default ;;
        *" --context") _aegis_agent_contexts ;;
        *" --env-file") compopt -o default ;;
        run" --health-exec") compopt -o default ;;
        run" --metrics-file") compopt -o default ;;
        run" --drain-file") compopt -o default ;;
        init" --replicas") words=(1 2 3 4 5) ;;
        init" --marker-ttl") words=(none) ;;
        init" --history") words=(1) ;;
        init" --max-age") words=(none) ;;
        init" --storage") words=(file memory) ;;
        check" --format") words=(text json nagios prometheus) ;;
        check" --output") compopt -o default ;;
        cleanup" --only") words=(heartbeat-too-old status-unhealthy status-shutdown no-ttl expired) ;;
        list" --status") words=(ACTIVE STANDBY UNHEALTHY SHUTDOWN) ;;
        watch" --exec") compopt -o default ;;
        *" -"*) ;;
        "help ") words=(run init check cleanup list watch) ;;
        " ") [[ $cur == -* ]] && words=("${global[@]}") || words=(run init check cleanup list watch help version) ;;
        *) case $verb in
            run) words=(--service --instance --service-version --ttl --interval --standby --group --meta --health-exec --health-tcp --health-timeout --health-failures --metrics-file --drain-file --check-config "${global[@]}") ;;
            init) words=(--replicas --marker-ttl --history --max-age --storage "${global[@]}") ;;
            check) words=(--probe --service --format --json --output "${global[@]}") ;;
            cleanup) words=(--dry-run --stale-after --only --service --max-removals --unreadable --spare-beating --json "${global[@]}") ;;
            list) words=(--all --service --status --meta --wide --names --stale-after --json "${global[@]}") ;;
            watch) words=(--json --exec --settle --stale-after "${global[@]}") ;;
        esac ;;
    esac
    for word in "${words[@]}"; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
    done
}

# Those of the nats CLI.
_aegis_agent_contexts() {
    local file name
    for file in "${XDG_CONFIG_HOME:-$HOME/.config}"/nats/context/*.json; do
        name=${file##*/} name=${name%.json}
        [[ -e $file && $name == "$cur"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done
}

complete -F _aegis_agent aegis-agent
