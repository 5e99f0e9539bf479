_aegis-agent() {
    local i cur prev opts cmds
    COMPREPLY=()
    cur="${COMP_WORDS[COMP_CWORD]}"
    if [[ $COMP_CWORD -ge 1 ]]; then
        prev="${COMP_WORDS[COMP_CWORD-1]}"
    else
        prev=""
    fi
    cmd=""
    opts=""

    for i in ${COMP_WORDS[@]}; do
        case "${i}" in
            aegis-agent | */aegis-agent)
                cmd="aegis-agent"
                ;;
            run)
                cmd="aegis-agent_run"
                ;;
            init)
                cmd="aegis-agent_init"
                ;;
            check)
                cmd="aegis-agent_check"
                ;;
            cleanup)
                cmd="aegis-agent_cleanup"
                ;;
            list)
                cmd="aegis-agent_list"
                ;;
            watch)
                cmd="aegis-agent_watch"
                ;;
        esac
    done

    case "${cmd}" in
        aegis-agent)
            opts="--help --nats-url -s --creds --nkey --user --password-file --token-file --tlsca --tlscert --tlskey --context --inbox-prefix --timeout --bucket --js-domain --env-file --verbose -v --version -V"
            cmds="run init check cleanup list watch"
            case "${prev}" in
                --nats-url | -s)
                    COMPREPLY=()
                    return 0
                    ;;
                --creds)
                    COMPREPLY=()
                    return 0
                    ;;
                --nkey)
                    COMPREPLY=()
                    return 0
                    ;;
                --user)
                    COMPREPLY=()
                    return 0
                    ;;
                --password-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --token-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlsca)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlscert)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlskey)
                    COMPREPLY=()
                    return 0
                    ;;
                --context)
                    COMPREPLY=()
                    return 0
                    ;;
                --inbox-prefix)
                    COMPREPLY=()
                    return 0
                    ;;
                --timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --bucket)
                    COMPREPLY=()
                    return 0
                    ;;
                --js-domain)
                    COMPREPLY=()
                    return 0
                    ;;
                --env-file)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        aegis-agent_run)
            opts="--help --service --instance --service-version --ttl --interval --standby --group --meta --health-exec --health-tcp --health-timeout --health-failures --metrics-file --drain-file --check-config --nats-url -s --creds --nkey --user --password-file --token-file --tlsca --tlscert --tlskey --context --inbox-prefix --timeout --bucket --js-domain --env-file --verbose -v --version -V"
            case "${prev}" in
                --service)
                    COMPREPLY=()
                    return 0
                    ;;
                --instance)
                    COMPREPLY=()
                    return 0
                    ;;
                --service-version)
                    COMPREPLY=()
                    return 0
                    ;;
                --ttl)
                    COMPREPLY=()
                    return 0
                    ;;
                --interval)
                    COMPREPLY=()
                    return 0
                    ;;
                --group)
                    COMPREPLY=()
                    return 0
                    ;;
                --meta)
                    COMPREPLY=()
                    return 0
                    ;;
                --health-exec)
                    COMPREPLY=()
                    return 0
                    ;;
                --health-tcp)
                    COMPREPLY=()
                    return 0
                    ;;
                --health-timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --health-failures)
                    COMPREPLY=()
                    return 0
                    ;;
                --metrics-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --drain-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --nats-url | -s)
                    COMPREPLY=()
                    return 0
                    ;;
                --creds)
                    COMPREPLY=()
                    return 0
                    ;;
                --nkey)
                    COMPREPLY=()
                    return 0
                    ;;
                --user)
                    COMPREPLY=()
                    return 0
                    ;;
                --password-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --token-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlsca)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlscert)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlskey)
                    COMPREPLY=()
                    return 0
                    ;;
                --context)
                    COMPREPLY=()
                    return 0
                    ;;
                --inbox-prefix)
                    COMPREPLY=()
                    return 0
                    ;;
                --timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --bucket)
                    COMPREPLY=()
                    return 0
                    ;;
                --js-domain)
                    COMPREPLY=()
                    return 0
                    ;;
                --env-file)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        aegis-agent_init)
            opts="--help --replicas --marker-ttl --history --max-age --storage --nats-url -s --creds --nkey --user --password-file --token-file --tlsca --tlscert --tlskey --context --inbox-prefix --timeout --bucket --js-domain --env-file --verbose -v --version -V"
            case "${prev}" in
                --replicas)
                    COMPREPLY=()
                    return 0
                    ;;
                --marker-ttl)
                    COMPREPLY=()
                    return 0
                    ;;
                --history)
                    COMPREPLY=()
                    return 0
                    ;;
                --max-age)
                    COMPREPLY=()
                    return 0
                    ;;
                --storage)
                    COMPREPLY=()
                    return 0
                    ;;
                --nats-url | -s)
                    COMPREPLY=()
                    return 0
                    ;;
                --creds)
                    COMPREPLY=()
                    return 0
                    ;;
                --nkey)
                    COMPREPLY=()
                    return 0
                    ;;
                --user)
                    COMPREPLY=()
                    return 0
                    ;;
                --password-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --token-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlsca)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlscert)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlskey)
                    COMPREPLY=()
                    return 0
                    ;;
                --context)
                    COMPREPLY=()
                    return 0
                    ;;
                --inbox-prefix)
                    COMPREPLY=()
                    return 0
                    ;;
                --timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --bucket)
                    COMPREPLY=()
                    return 0
                    ;;
                --js-domain)
                    COMPREPLY=()
                    return 0
                    ;;
                --env-file)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        aegis-agent_check)
            opts="--help --probe --service --format --json --output --nats-url -s --creds --nkey --user --password-file --token-file --tlsca --tlscert --tlskey --context --inbox-prefix --timeout --bucket --js-domain --env-file --verbose -v --version -V"
            case "${prev}" in
                --service)
                    COMPREPLY=()
                    return 0
                    ;;
                --format)
                    COMPREPLY=()
                    return 0
                    ;;
                --output)
                    COMPREPLY=()
                    return 0
                    ;;
                --nats-url | -s)
                    COMPREPLY=()
                    return 0
                    ;;
                --creds)
                    COMPREPLY=()
                    return 0
                    ;;
                --nkey)
                    COMPREPLY=()
                    return 0
                    ;;
                --user)
                    COMPREPLY=()
                    return 0
                    ;;
                --password-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --token-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlsca)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlscert)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlskey)
                    COMPREPLY=()
                    return 0
                    ;;
                --context)
                    COMPREPLY=()
                    return 0
                    ;;
                --inbox-prefix)
                    COMPREPLY=()
                    return 0
                    ;;
                --timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --bucket)
                    COMPREPLY=()
                    return 0
                    ;;
                --js-domain)
                    COMPREPLY=()
                    return 0
                    ;;
                --env-file)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        aegis-agent_cleanup)
            opts="--help --dry-run --stale-after --only --service --max-removals --unreadable --spare-beating --json --nats-url -s --creds --nkey --user --password-file --token-file --tlsca --tlscert --tlskey --context --inbox-prefix --timeout --bucket --js-domain --env-file --verbose -v --version -V"
            case "${prev}" in
                --stale-after)
                    COMPREPLY=()
                    return 0
                    ;;
                --only)
                    COMPREPLY=()
                    return 0
                    ;;
                --service)
                    COMPREPLY=()
                    return 0
                    ;;
                --max-removals)
                    COMPREPLY=()
                    return 0
                    ;;
                --nats-url | -s)
                    COMPREPLY=()
                    return 0
                    ;;
                --creds)
                    COMPREPLY=()
                    return 0
                    ;;
                --nkey)
                    COMPREPLY=()
                    return 0
                    ;;
                --user)
                    COMPREPLY=()
                    return 0
                    ;;
                --password-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --token-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlsca)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlscert)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlskey)
                    COMPREPLY=()
                    return 0
                    ;;
                --context)
                    COMPREPLY=()
                    return 0
                    ;;
                --inbox-prefix)
                    COMPREPLY=()
                    return 0
                    ;;
                --timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --bucket)
                    COMPREPLY=()
                    return 0
                    ;;
                --js-domain)
                    COMPREPLY=()
                    return 0
                    ;;
                --env-file)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        aegis-agent_list)
            opts="--help --all --service --status --meta --wide --names --stale-after --json --nats-url -s --creds --nkey --user --password-file --token-file --tlsca --tlscert --tlskey --context --inbox-prefix --timeout --bucket --js-domain --env-file --verbose -v --version -V"
            case "${prev}" in
                --service)
                    COMPREPLY=()
                    return 0
                    ;;
                --status)
                    COMPREPLY=()
                    return 0
                    ;;
                --meta)
                    COMPREPLY=()
                    return 0
                    ;;
                --stale-after)
                    COMPREPLY=()
                    return 0
                    ;;
                --nats-url | -s)
                    COMPREPLY=()
                    return 0
                    ;;
                --creds)
                    COMPREPLY=()
                    return 0
                    ;;
                --nkey)
                    COMPREPLY=()
                    return 0
                    ;;
                --user)
                    COMPREPLY=()
                    return 0
                    ;;
                --password-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --token-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlsca)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlscert)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlskey)
                    COMPREPLY=()
                    return 0
                    ;;
                --context)
                    COMPREPLY=()
                    return 0
                    ;;
                --inbox-prefix)
                    COMPREPLY=()
                    return 0
                    ;;
                --timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --bucket)
                    COMPREPLY=()
                    return 0
                    ;;
                --js-domain)
                    COMPREPLY=()
                    return 0
                    ;;
                --env-file)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        aegis-agent_watch)
            opts="--help --json --exec --settle --stale-after --nats-url -s --creds --nkey --user --password-file --token-file --tlsca --tlscert --tlskey --context --inbox-prefix --timeout --bucket --js-domain --env-file --verbose -v --version -V"
            case "${prev}" in
                --exec)
                    COMPREPLY=()
                    return 0
                    ;;
                --settle)
                    COMPREPLY=()
                    return 0
                    ;;
                --stale-after)
                    COMPREPLY=()
                    return 0
                    ;;
                --nats-url | -s)
                    COMPREPLY=()
                    return 0
                    ;;
                --creds)
                    COMPREPLY=()
                    return 0
                    ;;
                --nkey)
                    COMPREPLY=()
                    return 0
                    ;;
                --user)
                    COMPREPLY=()
                    return 0
                    ;;
                --password-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --token-file)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlsca)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlscert)
                    COMPREPLY=()
                    return 0
                    ;;
                --tlskey)
                    COMPREPLY=()
                    return 0
                    ;;
                --context)
                    COMPREPLY=()
                    return 0
                    ;;
                --inbox-prefix)
                    COMPREPLY=()
                    return 0
                    ;;
                --timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --bucket)
                    COMPREPLY=()
                    return 0
                    ;;
                --js-domain)
                    COMPREPLY=()
                    return 0
                    ;;
                --env-file)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
    esac
}

complete -F _aegis-agent -o bashdefault -o default aegis-agent
