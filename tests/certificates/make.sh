#!/usr/bin/env bash
# Makes the certificates that the TLS tests use. They lie in the repository, so
# that no test needs openssl; run this only to add one (all of them change).
# Every key here is test material: it opens nothing, and is no secret.
#
# "Expired" ones ended in 2021; the others last a hundred years. Made with
# OpenSSL 3.0. Everything is for localhost and 127.0.0.1 unless it says so.
set -euo pipefail
cd "$(dirname "$0")"
rm -f ./*.pem
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

CENTURY=(20250101000000Z 21250101000000Z)
PAST=(20200101000000Z 20210101000000Z)
LOCAL="DNS:localhost,IP:127.0.0.1"

genkey() { # KIND FILE
    case $1 in
        rsa) openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$2" ;;
        ec) openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$2" ;;
        ec384) openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out "$2" ;;
        p521) openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out "$2" ;;
        ed25519) openssl genpkey -algorithm ED25519 -out "$2" ;;
    esac
}

# `openssl ca` is the command of OpenSSL 3.0 that takes dates.
sign() { # CA NAME SUBJECT EXTENSIONS FROM TO
    printf '%s\n' "[ca]" "default_ca=c" "[c]" "database=$work/index" "serial=$work/serial" \
        "new_certs_dir=$work" "default_md=default" "policy=p" "unique_subject=no" "[p]" \
        "commonName=supplied" "[e]" "$4" >"$work/conf"
    : >"$work/index"
    openssl rand -hex 8 >"$work/serial"
    openssl req -new -key "$2-key.pem" -subj "/CN=$3" -out "$work/csr"
    local self=(-cert "$1.pem" -keyfile "$1-key.pem")
    [ "$1" = "$2" ] && self=(-selfsign -keyfile "$1-key.pem")
    openssl ca -batch -notext -config "$work/conf" -extensions e "${self[@]}" \
        -in "$work/csr" -out "$2.pem" -startdate "$5" -enddate "$6" 2>"$work/log" || {
        cat "$work/log"
        exit 1
    }
}

authority() { # NAME KIND
    genkey "$2" "$1-key.pem"
    sign "$1" "$1" "aegis-agent test $1" "basicConstraints=critical,CA:true
keyUsage=critical,keyCertSign
subjectKeyIdentifier=hash" "${CENTURY[@]}"
}

leaf() { # NAME KIND USAGE SAN FROM TO
    genkey "$2" "$1-key.pem"
    sign ca "$1" "aegis-agent test $1" "basicConstraints=critical,CA:false
extendedKeyUsage=$3
subjectAltName=$4" "$5" "$6"
}

authority ca ec
authority other-ca ec
for kind in rsa ec ec384 ed25519 p521; do
    leaf "server-$kind" "$kind" serverAuth "$LOCAL" "${CENTURY[@]}"
    leaf "client-$kind" "$kind" clientAuth "DNS:agent" "${CENTURY[@]}"
done
leaf server-expired ec serverAuth "$LOCAL" "${PAST[@]}"
leaf client-expired ec clientAuth "DNS:agent" "${PAST[@]}"
leaf server-elsewhere ec serverAuth "DNS:elsewhere.example" "${CENTURY[@]}"
# For the name alone, as most public ones are: a member of a cluster that is
# known by its address only has to be verified under the name of the list.
leaf server-name ec serverAuth "DNS:localhost" "${CENTURY[@]}"
# The same keys in the older wrappings, and under a passphrase.
openssl rsa -in client-rsa-key.pem -traditional -out client-rsa-key-pkcs1.pem 2>/dev/null
openssl ec -in client-ec-key.pem -out client-ec-key-sec1.pem 2>/dev/null
openssl pkcs8 -topk8 -in client-ec-key.pem -passout pass:test -out client-ec-key-encrypted.pem
# Nobody needs to sign again.
rm -f ca-key.pem other-ca-key.pem
