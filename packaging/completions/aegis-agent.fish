# Made by src/cli/completions.rs from what --help says; do not edit.

# Whether the verb on the line so far is this one, or none where it is empty.
function __aegis_agent_verb
    set -l verb
    set -l is_value no
    for word in (commandline -opc)[2..-1]
        if test $is_value = yes
            set is_value no
        else if contains -- $word --bucket --context --creds --drain-file --env-file --exec --format --group --health-exec --health-failures --health-tcp --health-timeout --history --inbox-prefix --instance --interval --js-domain --marker-ttl --max-age --max-removals --meta --metrics-file --nats-url --nkey --only --output --password-file --replicas --server --service --service-version --settle --stale-after --status --storage --timeout --tlsca --tlscert --tlskey --token-file --ttl --user -s
            set is_value yes
        else if not string match -q -- '-*' $word; and test -z "$verb"
            set verb $word
        end
    end
    test "$verb" = "$argv[1]"
end

# Those of the nats CLI.
function __aegis_agent_contexts
    set -l directory $HOME/.config
    set -q XDG_CONFIG_HOME; and test -n "$XDG_CONFIG_HOME"; and set directory $XDG_CONFIG_HOME
    for file in $directory/nats/context/*.json
        string replace -r '.*/(.*)\.json$' '$1' -- $file
    end
end

complete -c aegis-agent -f
complete -c aegis-agent -n '__aegis_agent_verb ""' -a run -d 'Registers an instance, keeps its entry alive, and takes it out on SIGTERM.'
complete -c aegis-agent -n '__aegis_agent_verb ""' -a init -d 'Creates the bucket, or switches per-message TTL on in one that exists.'
complete -c aegis-agent -n '__aegis_agent_verb ""' -a check -d 'Says whether per-message TTL really works here, and if not, why.'
complete -c aegis-agent -n '__aegis_agent_verb ""' -a cleanup -d 'Removes entries that nobody keeps alive, and never one that was refreshed meanwhile.'
complete -c aegis-agent -n '__aegis_agent_verb ""' -a list -d 'Shows who is alive.'
complete -c aegis-agent -n '__aegis_agent_verb ""' -a watch -d 'Tells who comes and goes, as it happens.'
complete -c aegis-agent -n '__aegis_agent_verb ""' -a help -d 'Shows what a verb takes.'
complete -c aegis-agent -n '__aegis_agent_verb ""' -a version -d 'Prints the version with its commit.'
complete -c aegis-agent -n '__aegis_agent_verb help' -a 'run init check cleanup list watch'
complete -c aegis-agent -s h -l help -d 'display usage information'
complete -c aegis-agent -s s -l nats-url -x -d 'servers, tls:// for TLS'
complete -c aegis-agent -l creds -r -F -d 'user JWT and seed'
complete -c aegis-agent -l nkey -r -F -d 'user nkey seed'
complete -c aegis-agent -l user -x -d 'user name'
complete -c aegis-agent -l password-file -r -F -d 'the user\'s password'
complete -c aegis-agent -l token-file -r -F -d 'a token'
complete -c aegis-agent -l tlsca -r -F -d 'roots to trust'
complete -c aegis-agent -l tlscert -r -F -d 'our own certificate'
complete -c aegis-agent -l tlskey -r -F -d 'its key'
complete -c aegis-agent -l context -x -a '(__aegis_agent_contexts)' -d 'a context of the nats CLI'
complete -c aegis-agent -l inbox-prefix -x -d 'where replies arrive'
complete -c aegis-agent -l timeout -x -d 'limit of each exchange with NATS'
complete -c aegis-agent -l bucket -x -d 'the bucket'
complete -c aegis-agent -l js-domain -x -d 'where the bucket\'s JetStream is: its domain'
complete -c aegis-agent -l env-file -r -F -d 'settings of this host, in the syntax of systemd\'s EnvironmentFile='
complete -c aegis-agent -s v -l verbose -d 'log more'
complete -c aegis-agent -s V -l version -d 'print the version'
complete -c aegis-agent -n '__aegis_agent_verb run' -l service -x -d 'name of the service'
complete -c aegis-agent -n '__aegis_agent_verb run' -l instance -x -d 'name of the instance'
complete -c aegis-agent -n '__aegis_agent_verb run' -l service-version -x -d 'version of the service'
complete -c aegis-agent -n '__aegis_agent_verb run' -l ttl -x -d 'life of an entry, whole seconds'
complete -c aegis-agent -n '__aegis_agent_verb run' -l interval -x -d 'longest time between heartbeats'
complete -c aegis-agent -n '__aegis_agent_verb run' -l standby -d 'register as STANDBY instead of ACTIVE'
complete -c aegis-agent -n '__aegis_agent_verb run' -l group -x -d 'sticky active group'
complete -c aegis-agent -n '__aegis_agent_verb run' -l meta -x -d 'metadata beside host and pid; repeatable'
complete -c aegis-agent -n '__aegis_agent_verb run' -l health-exec -r -F -d 'the service is well while this exits 0; no shell'
complete -c aegis-agent -n '__aegis_agent_verb run' -l health-tcp -x -d 'the service is well while this accepts connections'
complete -c aegis-agent -n '__aegis_agent_verb run' -l health-timeout -x -d 'limit of a check'
complete -c aegis-agent -n '__aegis_agent_verb run' -l health-failures -x -d 'failures in a row before UNHEALTHY'
complete -c aegis-agent -n '__aegis_agent_verb run' -l metrics-file -r -F -d 'keep this file of Prometheus text up to date'
complete -c aegis-agent -n '__aegis_agent_verb run' -l drain-file -r -F -d 'while this file exists: STANDBY, with its first line as the reason'
complete -c aegis-agent -n '__aegis_agent_verb run' -l check-config -d 'show the settings, where each comes from, and what a start would refuse; do not start'
complete -c aegis-agent -n '__aegis_agent_verb init' -l replicas -x -a '1 2 3 4 5' -d 'copies, 1 to 5'
complete -c aegis-agent -n '__aegis_agent_verb init' -l marker-ttl -x -a 'none' -d 'life of the server\'s delete markers, or none'
complete -c aegis-agent -n '__aegis_agent_verb init' -l history -x -a '1' -d 'keep one revision of a key, and drop the older ones: 1'
complete -c aegis-agent -n '__aegis_agent_verb init' -l max-age -x -a 'none' -d 'let nothing end an entry but its own TTL: none'
complete -c aegis-agent -n '__aegis_agent_verb init' -l storage -x -a 'file memory' -d 'file or memory, for a new bucket'
complete -c aegis-agent -n '__aegis_agent_verb check' -l probe -d 'store an entry of its own with a TTL of 1s and wait for it to go'
complete -c aegis-agent -n '__aegis_agent_verb check' -l service -x -d 'at least MIN instances of this service are alive'
complete -c aegis-agent -n '__aegis_agent_verb check' -l format -x -a 'text json nagios prometheus' -d 'text, json, nagios or prometheus'
complete -c aegis-agent -n '__aegis_agent_verb check' -l json -d 'short for --format json'
complete -c aegis-agent -n '__aegis_agent_verb check' -l output -r -F -d 'write to this file, whole or not at all, with --format prometheus'
complete -c aegis-agent -n '__aegis_agent_verb cleanup' -l dry-run -d 'say what would be removed, remove nothing'
complete -c aegis-agent -n '__aegis_agent_verb cleanup' -l stale-after -x -d 'age from which a heartbeat is too old'
complete -c aegis-agent -n '__aegis_agent_verb cleanup' -l only -x -a 'heartbeat-too-old status-unhealthy status-shutdown no-ttl expired' -d 'only entries that are removable for this reason; repeatable'
complete -c aegis-agent -n '__aegis_agent_verb cleanup' -l service -x -d 'only this service'
complete -c aegis-agent -n '__aegis_agent_verb cleanup' -l max-removals -x -d 'remove nothing and exit 75 if more would go'
complete -c aegis-agent -n '__aegis_agent_verb cleanup' -l unreadable -d 'remove instance entries that cannot be read, too'
complete -c aegis-agent -n '__aegis_agent_verb cleanup' -l spare-beating -d 'leave every entry alone whose own TTL is still running'
complete -c aegis-agent -n '__aegis_agent_verb cleanup' -l json -d 'answer in JSON'
complete -c aegis-agent -n '__aegis_agent_verb list' -l all -d 'stale ones, too, with all reasons'
complete -c aegis-agent -n '__aegis_agent_verb list' -l service -x -d 'only this service'
complete -c aegis-agent -n '__aegis_agent_verb list' -l status -x -a 'ACTIVE STANDBY UNHEALTHY SHUTDOWN' -d 'only those of this status'
complete -c aegis-agent -n '__aegis_agent_verb list' -l meta -x -d 'only those with this in their metadata; repeatable'
complete -c aegis-agent -n '__aegis_agent_verb list' -l wide -d 'host, pid, group, revision and metadata, too'
complete -c aegis-agent -n '__aegis_agent_verb list' -l names -d 'only names, one service/instance a line'
complete -c aegis-agent -n '__aegis_agent_verb list' -l stale-after -x -d 'age from which a heartbeat is too old'
complete -c aegis-agent -n '__aegis_agent_verb list' -l json -d 'answer in JSON'
complete -c aegis-agent -n '__aegis_agent_verb watch' -l json -d 'one event a line, in JSON'
complete -c aegis-agent -n '__aegis_agent_verb watch' -l exec -r -F -d 'run this after changes; no shell'
complete -c aegis-agent -n '__aegis_agent_verb watch' -l settle -x -d 'changes within this time go together'
complete -c aegis-agent -n '__aegis_agent_verb watch' -l stale-after -x -d 'age from which a heartbeat is too old'
